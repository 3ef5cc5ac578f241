"""What a trial of a cohort has to itself: what trains in its model, its optimiser, its random state, rows.

What happens after a step (progress, rows, early stopping, checkpoints) is decided by
``pipeline.training.components``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.detector.openmmlab.weight_average import WeightAverage
from pipeline.detector.precision import attention_dtype
from pipeline.detector.weights import save_weights
from pipeline.errors import DivergedError, TrialError
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.inference import DetectionsByCondition, Predictor
from pipeline.evaluation.scoring import ScoresByCondition
from pipeline.metrics.timing import Moment, StepTimes
from pipeline.runtime.determinism import seed_everything
from pipeline.runtime.event_log import RESUMED, STARTED, append_event
from pipeline.runtime.session import Session
from pipeline.storage.checkpoint import Trained
from pipeline.training.cohort.shared import SharedParts, SharedStep, StepInputs
from pipeline.training.components.checkpointer import Checkpointer
from pipeline.training.components.early_stopper import EarlyStopper
from pipeline.training.components.metrics_logger import MetricsLogger, open_recorder
from pipeline.training.components.progress import ProgressReporter
from pipeline.training.setup import build_train_step
from pipeline.training.step import Launched, Prepared, learning_rate, lr_factor, plan_of_step


@dataclass(frozen=True)
class Arm:
    """A trial of a cohort: its settings, and where it runs; its name is ``session.folder.name``."""

    settings: TrialSettings
    session: Session


@dataclass(frozen=True)
class _Pending:
    """A step that was launched and whose numbers have not been read."""

    step: SharedStep
    plan: str
    launched: Launched
    begun: Moment
    ended: Moment


class ArmTrainer:
    """Trains and measures one trial of a cohort on one rank.

    Args:
        arm: the trial.
        model: its detector, with its plan, on its device; it shares the trunk with the other arms.
        shared: what the arms have in common.

    Attributes:
        settings: with what the config adds filled in.
        train_step: trains the model, with the other workers if there are several.
        average: of the weights, where the config asks for it.
        detector: detects with the model.
        done: optimiser steps done.
        broken: frames that this trial has skipped on this rank.
    """

    def __init__(self, arm: Arm, model: CmtDetector, shared: SharedParts) -> None:
        self.arm, self.model = arm, model
        session, training, own = arm.session, shared.training, arm.settings
        self.settings = replace(training.settings, plan=own.plan, plan_mixture=own.plan_mixture)
        self.steps = training.steps
        self.train_step = build_train_step(
            model,
            shared.optim_wrapper,
            self.settings.train,
            distributed=session.world_size > 1,
            recorders=shared.recorders,
        )
        self._schedule = training.schedule(self.train_step.optimizer)
        recorder = None
        if session.rank == 0:
            recorder = open_recorder(own, session, str(model.plan), shared.data)
        self.evaluator = Evaluator(self.settings, session, recorder, self.steps, shared.split)
        self.detector = Predictor(model, model.image_size, self.settings.train.amp)
        listed = session.folder / f"broken_frames_{session.rank}.jsonl"
        self.broken = BrokenFrames(own.data.max_broken_frames, listed)
        self.times = StepTimes()
        self.progress = ProgressReporter(session, self.steps)
        self.logger = MetricsLogger(recorder, session, self.settings, self.steps, self.times, self.broken)
        self.early_stopper = EarlyStopper(shared.early_stopping, session, self.logger)
        self.average = WeightAverage(model, self.train_step.optimizer, training.average)
        trained = Trained(model, self.train_step.optimizer, self.average.tensors, shared.frozen)
        self._checkpointer = Checkpointer(session, self.settings, self.steps, trained)
        self.done = 0
        self._pending: _Pending | None = None

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one.

        Raises:
            CheckpointError: it was written under other settings, or is damaged.
        """
        self.done = self._checkpointer.restore()

    def started(self) -> None:
        """Record that the training starts, or goes on."""
        if self.arm.session.rank == 0:
            append_event(self.arm.session.folder, RESUMED if self.done else STARTED, self.done)
        self.logger.started(self.done)

    def launch(self, inputs: StepInputs) -> None:
        """Train one step; on a GPU the host does not wait for its end, but for that of the step before.

        Args:
            inputs: of the step.

        Raises:
            DivergedError: the loss or a gradient of a step is not finite; a row of the trial says so too.
        """
        settings, device, index = self.settings, self.arm.session.device, inputs.step.index
        begun = Moment(device)
        self.use(plan_of_step((settings.plan, *settings.plan_mixture), settings.seed, index))
        seed_everything(settings.seed, index, self.arm.session.rank)
        torch.set_rng_state(inputs.random_state)
        self.training_mode()
        plan, before = str(self.model.plan), self._pending
        self.average.update(self.train_step.batches_per_step - 1)  # as mmengine's hook, which counts batches
        with self._explained(inputs.step, plan):
            launched = self.train_step.launch(inputs.prepared, self._lr_factor(index))
        self.average.update()
        self._pending = _Pending(inputs.step, plan, launched, begun, Moment(device))
        self.done = index + 1
        if before is not None:
            self._read(before)

    def read(self) -> list[Any]:
        """Wait for the step that was launched last, and return its losses and norms; once for each step.

        Raises:
            DivergedError: see ``launch``.
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        return self._read(pending)

    def _read(self, pending: _Pending) -> list[Any]:
        step = pending.step
        with self._explained(step, pending.plan):
            measures = pending.launched.read()
        own_s = pending.ended.seconds_since(pending.begun)
        self.times.add(step.wait_s, step.ended.seconds_since(step.begun), own_s)
        return measures

    @contextmanager
    def _explained(self, step: SharedStep, plan: str) -> Iterator[None]:
        """Say which step it was if a number is not finite."""
        try:
            yield
        except (DivergedError, FloatingPointError) as error:
            self.logger.diverged(step.index + 1)
            # A forward pass fails on this rank alone: other ranks wait, so the arm cannot leave by itself.
            alike = isinstance(error, DivergedError) or self.arm.session.world_size == 1
            raise (DivergedError if alike else TrialError)(
                f"training stopped at step {step.index + 1} of {self.steps} under the plan {plan} "
                f"(frames {', '.join(step.tokens)}): {error}"
            ) from error

    def training_mode(self) -> None:
        """Put the model into training mode; walking through all modules at every step costs milliseconds."""
        if not self.model.training:
            self.model.train()

    def _lr_factor(self, index: int) -> float | None:
        """Return the factor on the learning rates; None after the config's schedule has set them."""
        if self._schedule is None:
            return lr_factor(index, self.steps, self.settings.train.warmup_steps or 0)
        self._schedule.apply(index)
        return None

    def use(self, plan: Plan) -> None:
        """Put a plan into effect, unless it is in effect."""
        if plan.resolve(self.model.sites) != self.model.plan:
            self.model.apply_plan(plan, dtype=attention_dtype(self.settings.train.amp))

    def report(self, measured: bool) -> None:
        """Log the step that was launched last, where it is due, and tell how far the training is.

        Args:
            measured: the trial is measured after this step, so its numbers must be there.
        """
        if self.logger.due(self.done):
            measures = [*self.read(), learning_rate(self.train_step.optimizer)]
            self.logger.after_step(self.done, measures, self.train_step.batches_per_step)
        elif measured or self._checkpointer.due(self.done):  # no checkpoint of a step that is not finite
            self.read()
        self.progress.after_step(self.done)

    def conclude(self, stopped: bool) -> None:
        """End the step that was launched last: the times if no further one follows, or a checkpoint.

        Args:
            stopped: the trial is stopped early.
        """
        if stopped or self.done == self.steps:  # before the checkpoint: resumed from it, no step is timed
            self.logger.finish(self.done, self.train_step.batches_per_step)
        if not stopped:
            self._checkpointer.after_step(self.done)

    def keep_weights(self) -> None:
        """Put the trial's own plan and the average of the weights on the model, and save its weights."""
        self.use(self.settings.plan)
        self.average.put()
        if self.arm.session.rank == 0:
            save_weights(self.model, self.arm.session.folder / "weights.safetensors")

    def profile(self, prepared: Prepared) -> None:
        """Record which kernels a training step runs; the weights stay as they are.

        Args:
            prepared: of any batch. The model trains kernel by kernel: a replayed graph does not show which
                site a kernel is of.
        """
        seed_everything(self.settings.seed, 0, self.arm.session.rank)
        self.training_mode()
        self.evaluator.kernels(lambda: torch.autograd.backward(self.train_step.losses(prepared)[0]))
        self.train_step.forget_gradients()

    def assess(
        self, detections: DetectionsByCondition, scored: ScoresByCondition, draw: Callable[[], object]
    ) -> None:
        """Measure speed and accuracy of the trained model, and draw a scene; only rank 0 calls it.

        Args:
            detections: of all frames.
            scored: their scores.
            draw: draws the scene, unless that is done.
        """
        self.evaluator.speed(self.detector)
        draw()
        self.evaluator.accuracy(detections, scored)
