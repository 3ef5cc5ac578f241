"""One trial from settings to rows: build, train or resume, evaluate, time, profile.

``run_trial`` is all of it. It uses neither Ray nor MLflow: a ``Session`` stands for where it runs, and
numbers go to ``rows.jsonl`` in the trial's folder. What happens after a step (progress, rows, early stopping,
checkpoints) is decided by ``pipeline.training.components``.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import Sample
from pipeline.data.source import Source
from pipeline.detector.deployment import train_through_graphs
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.precision import attention_dtype, with_autocast
from pipeline.detector.weights import save_weights
from pipeline.errors import TrialError
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.inference import Predictor
from pipeline.metrics.recorder import Measure
from pipeline.metrics.timing import StepClock
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.runtime.event_log import RESUMED, STARTED, append_event
from pipeline.runtime.resource_errors import explain_resource_errors
from pipeline.runtime.session import Session
from pipeline.storage.files import exclusive_writer
from pipeline.training.components.checkpointer import Checkpointer
from pipeline.training.components.early_stopper import EarlyStopper
from pipeline.training.components.metrics_logger import MetricsLogger, open_recorder
from pipeline.training.components.progress import ProgressReporter
from pipeline.training.dataset import TrainingData
from pipeline.training.preflight import check
from pipeline.training.resolve_config import resolve_training
from pipeline.training.setup import build_trial
from pipeline.training.step import Launched, learning_rate, lr_factor, plan_of_step

_LOG = logging.getLogger(__name__)


def run_trial(settings: TrialSettings, session: Session, early_stopping: EarlyStopping | None = None) -> None:
    """Run a trial to its end, or continue from its newest checkpoint.

    Rows go to ``session.folder / "rows.jsonl"``, detections to ``predictions``, the trained weights to
    ``weights.safetensors``. The same settings give the same rows, bit for bit, on a CPU.

    Args:
        settings: all that decides what the trial does.
        session: where it runs; every rank calls this with the same settings.
        early_stopping: where it is measured before its end, and may be stopped; None: nowhere.

    Raises:
        TrialError, DataError, PlanError, CheckpointError: before training, if the settings cannot be met.
        TrialError: in training, if the loss is not finite, or memory or disk run out; or another process
            runs this very trial.
    """
    check(settings, session.folder, session.device)
    deterministic(session.device, settings.torch_threads)
    only_writer = exclusive_writer(session.folder) if session.rank == 0 else nullcontext()
    with explain_resource_errors(settings, session.folder), only_writer:
        Trial(settings, session, early_stopping or EarlyStopping()).run()


@dataclass
class Step:
    """A step of a trial: its index, from 0, its samples, its plan, and what was launched."""

    index: int
    samples: list[Sample]
    plan: str
    launched: Launched | None = None


class Trial:
    """The parts of one trial on one rank; ``run_trial`` is the way to use it.

    Attributes:
        settings: with what the config adds filled in.
        model: the bare detector.
        train_step: trains it, through DDP if there are several workers.
        source: the training frames.
    """

    def __init__(self, settings: TrialSettings, session: Session, early_stopping: EarlyStopping) -> None:
        settings = with_autocast(settings)
        self.session = session
        self.train_step = build_trial(settings, session)
        self.model = self.train_step.model
        recorder = open_recorder(settings, session, str(self.model.plan)) if session.rank == 0 else None
        self.training_data = TrainingData(settings, self.model.image_size, tuple(self.model.point_range))
        self.source: Source = self.training_data.source
        resolved = resolve_training(settings, len(self.source), session.world_size)
        self.settings, self.steps = resolved.settings, resolved.steps
        self.schedule = resolved.schedule(self.train_step.optimizer)
        for sentence in resolved.differs if session.rank == 0 else ():
            _LOG.warning("%s", sentence)
        self.evaluator = Evaluator(
            self.settings, session, recorder, self.steps, self.training_data.val_reading
        )
        self.detector = Predictor(self.model, self.model.image_size, self.settings.train.amp)
        listed = session.folder / f"broken_frames_{session.rank}.jsonl"
        self.broken = BrokenFrames(settings.data.max_broken_frames, listed)
        self.clock = StepClock(session.device, waits=False)
        self.progress = ProgressReporter(session, self.steps, self.clock)
        self.logger = MetricsLogger(recorder, session, self.settings, self.steps, self.clock, self.broken)
        self.early_stopper = EarlyStopper(early_stopping, session, self.logger, self._evaluate_quick)
        self.checkpointer = Checkpointer(
            session, self.settings, self.steps, self.model, self.train_step.optimizer
        )

    def run(self) -> None:
        """Train, evaluate, save; a trial that was stopped early ends with its training."""
        if not self.train():
            return
        self._use(self.settings.plan)
        if self.session.rank == 0:
            save_weights(self.model, self.session.folder / "weights.safetensors")
        detections = self.evaluator.detect(self.detector)
        self._profile()
        if self.session.rank == 0:  # last, because the other ranks wait for it in every all-reduce
            self.evaluator.speed(self.detector)
            self.evaluator.picture(self.model)
            self.evaluator.accuracy(detections)

    def train(self) -> bool:
        """Train from the newest checkpoint, if there is one; return whether the last step was reached."""
        first = self.checkpointer.restore()
        if self.session.rank == 0:
            append_event(self.session.folder, RESUMED if first else STARTED, first)
        self.logger.started(first)
        batches = self.batches(first, self.steps)
        before: Step | None = None
        for index in range(first, self.steps):
            self.clock.begin()
            samples = next(batches)
            self.clock.fed()
            step = self.launch(index, samples)
            if before is not None:
                self.read(before)  # one step late, so that the GPU always has work
            measures = self.read(step) if self.logger.due(index + 1) else None
            self.clock.end()
            if not self._after_step(index + 1, measures):
                return False
            before = step
        return True

    def _after_step(self, step: int, measures: list[Measure] | None) -> bool:
        """Log, report, evaluate and save where it is time; return False if the trial is stopped."""
        if measures is not None:
            measures = [*measures, learning_rate(self.train_step.optimizer)]
            self.logger.after_step(step, measures, self.train_step.batches_per_step)
        self.progress.after_step(step)
        stopped = self.early_stopper.after_step(step)
        if stopped or step == self.steps:  # before the checkpoint: resumed from it, no step is timed
            self.logger.finish(step, self.train_step.batches_per_step)
        if not stopped:
            self.checkpointer.after_step(step)
        return not stopped

    def launch(self, index: int, samples: list[Sample]) -> "Step":
        """Train on the batch of one step; on a GPU the host does not wait for its end.

        Args:
            index: of the step, from 0.
            samples: of this rank.

        Raises:
            TrialError: see ``read``.
        """
        settings = self.settings
        self._use(plan_of_step((settings.plan, *settings.plan_mixture), settings.seed, index))
        seed_everything(settings.seed, index, self.session.rank)
        if not self.model.training:  # walking through all modules at every step costs milliseconds
            self.model.train()
        step = Step(index, samples, str(self.model.plan))
        with self._explained(step):
            step.launched = self.train_step.launch(collate(samples), self._lr_factor(index))
        return step

    def read(self, step: "Step") -> list[Measure]:
        """Return losses and norms of a step.

        Raises:
            TrialError: the loss or a gradient is not finite; a row of the trial says so too.
        """
        assert step.launched is not None
        with self._explained(step):
            return step.launched.read()

    @contextmanager
    def _explained(self, step: "Step") -> Iterator[None]:
        """Say which step it was if a number is not finite."""
        try:
            yield
        except (TrialError, FloatingPointError) as error:
            self.logger.diverged(step.index + 1)
            raise TrialError(
                f"training stopped at step {step.index + 1} of {self.steps} under the plan {step.plan} "
                f"(frames {', '.join(s.token for s in step.samples)}): {error}"
            ) from error

    def _lr_factor(self, index: int) -> float | None:
        """Return the factor on the learning rates; None after the config's schedule has set them."""
        if self.schedule is None:
            return lr_factor(index, self.steps, self.settings.train.warmup_steps or 0)
        self.schedule.apply(index)
        return None

    def _use(self, plan: Plan) -> None:
        """Put a plan into effect, unless it is in effect."""
        if plan.resolve(self.model.sites) != self.model.plan:
            self.model.apply_plan(plan, dtype=attention_dtype(self.settings.train.amp))

    def _evaluate_quick(self, step: int, metric: str, condition: str) -> float:
        """Evaluate in mid-training under the trial's own plan; see ``Evaluator.evaluate_quick``."""
        self._use(self.settings.plan)
        return self.evaluator.evaluate_quick(self.detector, step, metric, condition)

    def _profile(self) -> None:
        """Record which kernels a training step runs; the weights stay as they are."""
        train_through_graphs(self.model, False)  # a replayed graph does not show which site a kernel is of
        samples = next(self.batches(0, 1))
        seed_everything(self.settings.seed, 0, self.session.rank)
        self.model.train()

        def forward_and_backward() -> None:
            torch.autograd.backward(self.train_step.losses(collate(samples))[0])

        self.evaluator.kernels(forward_and_backward)
        self.train_step.optimizer.zero_grad(set_to_none=True)

    def batches(self, first: int, last: int) -> Iterator[list[Sample]]:
        """Yield this rank's samples of the steps from ``first`` up to, not including, ``last``."""
        settings, session = self.settings, self.session
        order = BatchOrder(
            len(self.source),
            settings.train.batch_size * self.train_step.batches_per_step,
            session.rank,
            session.world_size,
            settings.seed,
            tuple(self.source.blocks),
            settings.data.shuffle_buffer,
        )
        workers = settings.data.num_loader_workers
        return training_batches(
            self.source, order, self.training_data.transform, first, last, workers, self.broken
        )
