"""One trial from settings to rows - build, train or resume, evaluate, time, profile.

``run_trial`` is the whole of it. It knows neither Ray nor MLflow: a ``Session`` says where it runs
and takes its reports; numbers go to ``rows.jsonl`` in the trial's folder.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from pipeline.config.early_stopping import STOPPED, EarlyStopping
from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.formats.fingerprint import fingerprint
from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import Sample
from pipeline.data.source import Source
from pipeline.detector.build import build_model, load_config
from pipeline.detector.deployment import train_through_graphs
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.openmmlab.optimizer import build_optimizer, clip_norm
from pipeline.detector.precision import attention_dtype, with_autocast
from pipeline.detector.weights import load_weights, save_weights
from pipeline.errors import TrialError
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.inference import Predictor
from pipeline.metrics.recorder import Measure, RowRecorder
from pipeline.metrics.rows import Row
from pipeline.metrics.timing import StepClock, device_name
from pipeline.metrics.versions import commit, versions
from pipeline.runtime.collectives import all_reduce_mean, broadcast
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.runtime.event_log import STARTED, append_event
from pipeline.runtime.resource_errors import explain_resource_errors
from pipeline.runtime.session import Session
from pipeline.storage.checkpoint import load_checkpoint, save_checkpoint
from pipeline.storage.files import exclusive_writer
from pipeline.storage.paths import resolve_path
from pipeline.training.dataset import TrainingData
from pipeline.training.preemption import PreemptionWatch
from pipeline.training.preflight import check
from pipeline.training.resolve_config import resolve_training
from pipeline.training.step import TrainStep, lr_factor, plan_of_step

_LOG = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
"""Seconds between two words about progress; a terminal is read no faster."""

UNITS = {"bias_scale": "logits", "bias_scale_grad": "1/logits"}
"""Units of what a step returns; losses and norms are plain numbers."""


def run_trial(settings: TrialSettings, session: Session, early_stopping: EarlyStopping | None = None) -> None:
    """Run a trial to its end, or go on where its newest checkpoint left it.

    Rows go to ``session.folder / "rows.jsonl"``, detections to ``predictions``, the trained weights to
    ``weights.safetensors``. The same settings give the same rows, bit for bit, on a CPU.

    Args:
        settings: all that decides what the trial does.
        session: where it runs; every rank calls this with the same settings.
        early_stopping: where it is measured before its end, and may be stopped; None: nowhere.

    Raises:
        TrialError, DataError, PlanError, StateError: before training, if the settings cannot be met.
        TrialError: in training, if the loss is not finite, or memory or disk run out; or another process
            runs this very trial.
    """
    check(settings, session.folder, session.device)
    deterministic(session.device, settings.torch_threads)
    alone = exclusive_writer(session.folder) if session.rank == 0 else nullcontext()
    with explain_resource_errors(settings, session.folder), alone:
        Trial(settings, session, early_stopping or EarlyStopping()).run()


class Trial:
    """The parts of one trial on one rank; ``run_trial`` is the way to use it.

    Attributes:
        model: the bare detector.
        train_step: trains it, through DDP if there are several workers.
    """

    def __init__(self, settings: TrialSettings, session: Session, early_stopping: EarlyStopping) -> None:
        settings = with_autocast(settings)
        self.session, self.early_stopping = session, early_stopping
        self.plans = (settings.plan, *settings.plan_mixture)
        self.model, self.train_step = _build(settings, session)
        self.record = _open_record(settings, session, str(self.model.plan)) if session.rank == 0 else None
        self.training_data = TrainingData(settings, self.model.image_size, tuple(self.model.point_range))
        self.source: Source = self.training_data.source
        resolved = resolve_training(settings, len(self.source), session.world_size)
        self.settings = settings = resolved.settings
        self.schedule = resolved.schedule(self.train_step.optimizer)
        for sentence in resolved.differs if session.rank == 0 else ():
            _LOG.warning("%s", sentence)
        self.evaluator = Evaluator(settings, session, self.record, self.training_data.val_reading)
        self.detector = Predictor(self.model, self.model.image_size, settings.train.amp)
        listed = session.folder / f"broken_frames_{session.rank}.jsonl"
        self.broken = BrokenFrames(settings.data.max_broken_frames, listed)
        self.clock = StepClock(session.device)

    def run(self) -> None:
        """Train, assess, save; a trial that was stopped early has nothing more to tell."""
        if not self.train():
            return
        session = self.session
        self._use(self.settings.plan)
        if session.rank == 0:
            save_weights(self.model, session.folder / "weights.safetensors")
        found = self.evaluator.detect(self.detector)
        self._profile()
        summary = {}
        if session.rank == 0:  # last, because the others would wait for it in the next all-reduce
            self.evaluator.speed(self.detector)
            self.evaluator.picture(self.model)
            summary = self.evaluator.accuracy(found)
        session.report(summary, None)

    def train(self) -> bool:
        """Train from the newest checkpoint if there is one; tell whether the last step was reached."""
        steps, together = self.settings.train.steps, self.settings.train.batch_size * self.session.world_size
        checkpoint = self.session.latest_checkpoint()
        first = 0
        if checkpoint is not None:
            first = load_checkpoint(checkpoint, self.settings.digest, self.model, self.train_step.optimizer)
        if self.session.rank == 0:
            append_event(self.session.folder, STARTED, first)
        batches, preemption = self.batches(first, steps), PreemptionWatch(self.session)
        spoken = 0.0
        for step in range(first, steps):
            self.clock.begin()
            samples = next(batches)
            self.clock.fed()
            found = self.step(step, samples)
            self.clock.end()
            self._note(step + 1, found)
            left = self.clock.seconds_left(steps - step - 1)
            if self.session.rank == 0 and (time.monotonic() - spoken > PROGRESS_EVERY_S or step + 1 == steps):
                spoken = time.monotonic()
                self.session.progress("train", step + 1, steps, left)
            stopped = self.early_stopping.has(step + 1) and self._falls(step + 1)
            if stopped or step + 1 == steps:  # before the checkpoint: no run resumed there would time a step
                self._add(step + 1, self.clock.measures(together))
                self._note_broken(step + 1)
            if stopped:
                return False
            leaving = preemption.should_checkpoint()
            if leaving or (step + 1) % self.settings.train.checkpoint_every == 0 or step + 1 == steps:
                self._checkpoint(step + 1, found["loss"], left)
        return True

    def _falls(self, step: int) -> bool:
        """Measure the trial at a rung; tell, alike on all ranks, whether it is stopped there."""
        self._use(self.settings.plan)
        if self.session.rank == 0:
            self.session.progress("rung", step, self.settings.train.steps, float("nan"))
        value = self.evaluator.evaluate_quick(
            self.detector, step, self.early_stopping.metric, self.early_stopping.condition
        )
        stopped = self.early_stopping.stops(step, broadcast(value, self.session))
        if stopped:
            self._add(step, [Measure(STOPPED, "steps", step)])
        return stopped

    def step(self, step: int, samples: list[Sample]) -> dict[str, float]:
        """Train on the batch of one step; return its losses and norms."""
        train = self.settings.train
        self._use(plan_of_step(self.plans, self.settings.seed, step))
        seed_everything(self.settings.seed, step, self.session.rank)
        self.model.train()
        try:
            return self.train_step.step(collate(samples), self._rate(step))
        except (TrialError, FloatingPointError) as error:
            self._add(step + 1, [Measure("loss", "", float("nan"))])  # the verdict counts diverged trials
            raise TrialError(
                f"training stopped at step {step + 1} of {train.steps} under the plan {self.model.plan} "
                f"(frames {', '.join(s.token for s in samples)}): {error}"
            ) from error

    def _rate(self, step: int) -> float | None:
        """Return the factor on the learning rates; None after the config's schedule has set them."""
        train = self.settings.train
        if self.schedule is None:
            return lr_factor(step, train.steps, train.warmup_steps or 0)
        self.schedule.apply(step)
        return None

    def _use(self, plan: Plan) -> None:
        if plan.resolve(self.model.sites) != self.model.plan:
            self.model.apply_plan(plan, dtype=attention_dtype(self.settings))

    def _note(self, step: int, found: Mapping[str, float]) -> None:
        """Write a step's numbers down, every ``log_every`` steps; losses are averaged over the ranks."""
        if step % self.settings.train.log_every and step != self.settings.train.steps:
            return
        found = all_reduce_mean(found, self.session)
        self._add(step, [_measure(name, value) for name, value in found.items()])

    def _note_broken(self, step: int) -> None:
        """Write down how many frames all ranks have skipped, if any may be."""
        if self.settings.data.max_broken_frames:
            mean = all_reduce_mean({"broken_frames": float(len(self.broken))}, self.session)["broken_frames"]
            self._add(step, [Measure("broken_frames", "frames", mean * self.session.world_size)])

    def _checkpoint(self, step: int, loss: float, seconds_left: float) -> None:
        path = None
        if self.session.rank == 0:
            folder = self.session.folder / "checkpoints"
            path = save_checkpoint(folder, step, self.settings.digest, self.model, self.train_step.optimizer)
        self.session.report({"step": step, "loss": loss, "seconds_left": seconds_left}, path)

    def _profile(self) -> None:
        """Record which kernels a training step runs; the weights stay as they are."""
        train_through_graphs(self.model, False)  # a replay does not say which site a kernel is of
        samples = next(self.batches(0, 1))
        seed_everything(self.settings.seed, 0, self.session.rank)
        self.model.train()

        def forward_and_backward() -> None:
            torch.autograd.backward(self.train_step.losses(collate(samples))[0])

        self.evaluator.kernels(forward_and_backward)
        self.train_step.optimizer.zero_grad(set_to_none=True)

    def batches(self, first: int, last: int) -> Iterator[list[Sample]]:
        """Yield this rank's batches of the steps from ``first`` up to, not including, ``last``."""
        settings, session = self.settings, self.session
        order = BatchOrder(
            len(self.source),
            settings.train.batch_size,
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

    def _add(self, step: int, measures: list[Measure]) -> None:
        if self.record is not None:
            self.record.add(step, measures)


def _build(settings: TrialSettings, session: Session) -> tuple[Any, TrainStep]:
    """Build model and optimiser; every plan of the trial is tried on the model before anything trains."""
    seed_everything(settings.seed)
    optim_wrapper = load_config(resolve_path(settings.config), settings.overrides).optim_wrapper
    dtype = attention_dtype(settings)
    model = build_model(
        resolve_path(settings.config), settings.overrides, settings.plan, session.device.type, dtype
    ).to(session.device)
    if settings.init_checkpoint:
        load_weights(
            model, resolve_path(settings.init_checkpoint), fresh=("aqr",)
        )  # CMT's own checkpoints have no AQR
    for plan in (*settings.plan_mixture, settings.plan):
        model.apply_plan(plan, dtype=dtype)
    train_through_graphs(model, settings.train.cuda_graphs)
    optimizer = build_optimizer(model, optim_wrapper, settings.train.lr_scale)
    limit = clip_norm(optim_wrapper)
    return model, TrainStep(
        model,
        optimizer,
        clip_norm=float("inf") if limit is None else limit,
        amp=settings.train.amp,
        distributed=session.world_size > 1,
        idle=not all(
            _is_biased(plan.resolve(model.sites)) for plan in (settings.plan, *settings.plan_mixture)
        ),
    )


def _is_biased(plan: Plan) -> bool:
    """Tell whether a resolved plan uses the bias generator, and with it the query weights."""
    return any(choice.bias not in ("none", "local") for _, choice in plan.choices)


def _open_record(settings: TrialSettings, session: Session, plan: str) -> RowRecorder:
    common = Row(
        study=settings.study,
        trial=session.folder.name,
        plan=plan,
        metric="",
        unit="",
        value=0.0,
        seed=settings.seed,
        device=device_name(session.device),
        versions=f"{versions()};data={fingerprint(settings.data)}",
        commit=commit(),
        recipe_digest=session.recipe,
    )
    return RowRecorder(session.folder / "rows.jsonl", common)


def _measure(name: str, value: float) -> Measure:
    """Read a number of a step: ``metric``, or ``metric/site`` if it is about one site."""
    metric, _, site = name.partition("/")
    return Measure(metric, UNITS.get(metric, ""), value, site=site)
