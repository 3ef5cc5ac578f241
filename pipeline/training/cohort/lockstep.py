"""The training loop of a cohort: what its arms share is done once, then each arm runs its own part.

Batches are loaded, uploaded and preprocessed once, and the trunk of the model runs once.
"""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch

from pipeline.config.early_stopping import EarlyStopping
from pipeline.data.formats.fingerprint import fingerprint
from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import Sample
from pipeline.detector.acceleration.captured_passes import Recorders
from pipeline.detector.build import load_config
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.deployment import train_through_graphs
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.precision import with_autocast
from pipeline.evaluation.evaluator import ValidationSplit
from pipeline.evaluation.inference import DetectionsByCondition, predict_each
from pipeline.evaluation.scoring import scores_of_each, scoring_tasks
from pipeline.metrics.timing import Moment
from pipeline.runtime.background import in_background
from pipeline.runtime.determinism import seed_everything
from pipeline.storage.checkpoint import FrozenPart
from pipeline.storage.paths import resolve_path
from pipeline.training.cohort.arm import Arm, ArmTrainer
from pipeline.training.cohort.leaving import Left, own_errors, raise_error
from pipeline.training.cohort.shared import SharedParts, SharedStep, StepInputs
from pipeline.training.dataset import TrainingData
from pipeline.training.resolve_config import resolve_training
from pipeline.training.setup import build_detector, put_plans

_LOG = logging.getLogger(__name__)


class Cohort:
    """The arms of a cohort on one rank, and what they share; ``run_cohort`` is the way to use it.

    Args:
        arms: the trials, at least one; they differ in their plans alone.
        early_stopping: see ``run_cohort``.
        left: told of every arm that leaves.

    Attributes:
        trainers: of the arms that have not left.
        training_data: the training frames, and what is done to them.
        split: what the arms are measured on.
        steps: optimiser steps of the whole training.
    """

    def __init__(
        self, arms: Sequence[Arm], early_stopping: EarlyStopping | None = None, left: Left = raise_error
    ) -> None:
        self._told = left
        self._rule = early_stopping or EarlyStopping()
        self.session = arms[0].session
        settings = with_autocast(arms[0].settings)
        arms = [replace(arm, settings=replace(arm.settings, train=settings.train)) for arm in arms]
        self.trainers: list[ArmTrainer] = []
        self.steps = 0
        models = self._build(arms)
        if not models:
            return
        model = models[0][1]
        self.training_data = TrainingData(settings, model.image_size, tuple(model.point_range))
        resolved = resolve_training(settings, len(self.training_data.source), self.session.world_size)
        for sentence in resolved.differs if self.session.rank == 0 else ():
            _LOG.warning("%s", sentence)
        self.settings, self.steps = resolved.settings, resolved.steps
        self.split = ValidationSplit(settings, self.training_data.val_reading)
        config = load_config(resolve_path(settings.config), settings.overrides)
        shared = SharedParts(
            resolved,
            config.optim_wrapper,
            self.split,
            fingerprint(settings.data),
            self._rule,
            Recorders(),
            FrozenPart.of(model, model.trunk_modules),
        )
        self.trainers = [ArmTrainer(arm, model, shared) for arm, model in models]

    def _build(self, arms: Sequence[Arm]) -> list[tuple[Arm, CmtDetector]]:
        """Build one model, and copies that share its trunk, and put the arms' plans on them."""
        models: list[tuple[Arm, CmtDetector]] = []
        for arm in arms:
            with own_errors(arm, self._told):
                if models:
                    model = models[0][1].copy_beside_trunk()
                else:
                    model = build_detector(arm.settings, arm.session.device)
                put_plans(model, arm.settings)
                models.append((arm, model))
        return models

    def run(self) -> None:
        """Train, evaluate, save; an arm that is done, is stopped early or fails leaves."""
        self.train()
        if self.trainers:
            self._evaluate()

    def train(self) -> None:
        """Train all arms to their last step, each from its newest checkpoint, if there is one."""
        for trainer in [*self.trainers]:
            with own_errors(trainer.arm, self._leave):
                trainer.restore()
                trainer.started()
        while behind := [trainer.done for trainer in self.trainers if trainer.done < self.steps]:
            self._train_from(min(behind))

    def _train_from(self, first: int) -> None:
        """Train from a step on, until all arms are done or none is at the step that comes next.

        Arms that are further ahead join when the others reach their step.
        """
        with closing(self.batches(first, self.steps)) as batches:
            for index in range(first, self.steps):
                active = self._at(index)
                if not active:
                    return
                for trainer in active:
                    trainer.progress.before_step()
                begun = time.perf_counter()
                samples = next(batches)
                self.step(index, samples, time.perf_counter() - begun)
                self._after_step(index + 1, active)

    def _at(self, step: int) -> list[ArmTrainer]:
        """Return the trainers that have done so many steps."""
        return [trainer for trainer in self.trainers if trainer.done == step]

    def step(self, index: int, samples: Sequence[Sample], wait_s: float = 0.0) -> None:
        """Train one step with every arm that has done ``index`` steps; on a GPU the host does not wait.

        An arm's forward pass is launched while the GPU still computes for the arm before.

        Args:
            index: of the step, from 0.
            samples: its batch on this rank.
            wait_s: seconds until the loader gave it.
        """
        active, session = self._at(index), self.session
        begun = Moment(session.device)
        seed_everything(self.settings.seed, index, session.rank)
        active[0].training_mode()
        prepared = active[0].train_step.prepare(collate(samples))
        tokens, state = tuple(sample.token for sample in samples), torch.get_rng_state()
        shared = SharedStep(index, tokens, wait_s, begun, Moment(session.device))
        inputs = StepInputs(shared, prepared, state)
        for trainer in active:
            with own_errors(trainer.arm, self._leave):
                trainer.launch(inputs)

    def _after_step(self, step: int, trained: Sequence[ArmTrainer]) -> None:
        """Log, report, measure and save where it is time; arms that are stopped leave.

        Args:
            step: steps done.
            trained: the trainers of the step; some may have left.
        """
        measured = self._rule.has(step)
        for trainer in self._present(trained):
            with own_errors(trainer.arm, self._leave):
                trainer.report(measured)
        active = self._present(trained)
        stopped = self._measure(step, active) if measured and active else [False] * len(active)
        for trainer, stops in zip(active, stopped, strict=True):
            trainer.conclude(stops)
            if stops:
                self._leave(trainer.arm, None)

    def _present(self, trainers: Sequence[ArmTrainer]) -> list[ArmTrainer]:
        return [trainer for trainer in trainers if trainer in self.trainers]

    def _measure(self, step: int, active: Sequence[ArmTrainer]) -> list[bool]:
        """Measure arms in mid-training, each under its own plan; return which are stopped."""
        for trainer in active:
            trainer.use(trainer.settings.plan)
            self._tell(trainer, "early stopping", step, self.steps, float("nan"))
        metric, condition = self._rule.metric, self._rule.condition
        with ExitStack() as averaged:
            for trainer in active:
                averaged.enter_context(trainer.average.in_effect())
            found = predict_each([t.detector for t in active], self.split.views(condition), self.session)
        return [
            trainer.early_stopper.stops(step, trainer.evaluator.quick(step, metric, condition, detections))
            for trainer, detections in zip(active, found, strict=True)
        ]

    def _evaluate(self) -> None:
        """Save and measure the trained arms; every arm leaves when it has been measured."""
        trainers, frames, begun = [*self.trainers], len(self.split.source), time.monotonic()
        for trainer in trainers:
            trainer.keep_weights()

        def progress(mine: int) -> None:
            done = min(frames, mine * self.session.world_size)
            left = (time.monotonic() - begun) * (frames - done) / done
            for trainer in trainers:
                self._tell(trainer, "evaluate", done, frames, left)

        found = predict_each([t.detector for t in trainers], self.split.views(), self.session, progress)
        # Training has ended, so the cores of the loader processes and the others of this worker are free.
        cores = max(self.settings.data.num_loader_workers, self.session.cores)
        tasks = self._tasks(trainers, found) if self.session.rank == 0 else []
        results = in_background(tasks, cores if cores > 1 else 0)
        self._profile()  # after all detections: its step moves the statistics of batch norms
        made = iter(results())  # after what all ranks do, because the others would wait for it
        scored = scores_of_each(found, made) if tasks else []
        drawings = list(made)
        for place, trainer in enumerate(trainers):
            with own_errors(trainer.arm, self._leave):
                if scored:
                    trainer.assess(found[place], scored[place], drawings[place])
                self._leave(trainer.arm, None)

    def _tasks(
        self, trainers: Sequence[ArmTrainer], found: Sequence[DetectionsByCondition]
    ) -> list[Callable[[], Any]]:
        """Return what other processes can do: score each arm under each condition, then draw each arm."""
        return [
            *scoring_tasks(self.split.metric, found),
            *(trainer.evaluator.drawing(trainer.model) for trainer in trainers),
        ]

    def _profile(self) -> None:
        """Let every arm record its kernels, on the first batch; all ranks share the losses."""
        for trainer in self.trainers:
            train_through_graphs(trainer.model, False)
        lead = self.trainers[0]
        lead.training_mode()
        with closing(self.batches(0, 1)) as batches:
            prepared = lead.train_step.prepare(collate(next(batches)))
        for trainer in self.trainers:
            trainer.profile(prepared[0])

    def _leave(self, arm: Arm, error: Exception | None) -> None:
        self.trainers = [trainer for trainer in self.trainers if trainer.arm is not arm]
        self._told(arm, error)

    def _tell(self, trainer: ArmTrainer, stage: str, done: int, total: int, seconds_left: float) -> None:
        if self.session.rank == 0:
            trainer.arm.session.progress(stage, done, total, seconds_left)

    def batches(self, first: int, last: int) -> Generator[list[Sample], None, None]:
        """Yield this rank's samples of the steps from ``first`` up to, not including, ``last``."""
        settings, session, data = self.settings, self.session, self.training_data
        train, loading, source = settings.train, settings.data, data.source
        order = BatchOrder(
            len(source),
            train.batch_size * self.trainers[0].train_step.batches_per_step,
            session.rank,
            session.world_size,
            settings.seed,
            tuple(source.blocks),
            loading.shuffle_buffer,
        )
        broken = _BrokenForAll(self, loading.max_broken_frames)
        return training_batches(
            source, order, data.transform, first, last, loading.num_loader_workers, broken
        )


class _BrokenForAll(BrokenFrames):
    """Tells the arms that train a step about its broken frames: each keeps a list of its own."""

    def __init__(self, cohort: Cohort, limit: int) -> None:
        super().__init__(limit)
        self._cohort = cohort

    def note(self, token: str, problem: str, step: int) -> None:
        for trainer in self._cohort.trainers:
            if trainer.done == step:
                trainer.broken.note(token, problem, step)
