"""A model that the stopwatch times: it trains and detects under any plan, and its weights stay as they are.

The model is that of a trial: its config, initial weights, data, batch size, precision and CUDA graphs. It
trains with the trial's own step at a learning rate of 0, on one batch. It detects at batch 1 in a copy that
is prepared as for deployment.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.detector.deployment import for_inference, train_through_graphs, use_graphs
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.precision import AUTOCAST_DTYPE, attention_dtype
from pipeline.errors import TrialError
from pipeline.evaluation.inference import Predictor
from pipeline.metrics.recorder import Measure
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, Cohort
from pipeline.training.preflight import check
from pipeline.training.step import Prepared, TrainStep

BATCHES = 5
"""Batches of a training of which the one with the median number of boxes is taken."""

STEPS_PER_VISIT = {"cpu": 1, "cuda": 3}
"""Training steps that a visit runs one after another. A GPU works on one while the host launches the next."""

GRAPHS_PER_PLAN, OTHER_GRAPHS = 2, 8
"""CUDA graphs that are kept: a plan has one of the head, with room for a second; branches have others."""


class TimedModel:
    """One model with the data of its steps.

    Args:
        train_step: trains the model; no step has run.
        batch: what a training step reads: a collated batch.
        frame: what a detection reads: a prepared batch of one frame.
        settings: how it is timed.

    Attributes:
        model: the bare detector that trains.
    """

    def __init__(
        self,
        train_step: TrainStep,
        batch: Mapping[str, Any],
        frame: Mapping[str, Any],
        settings: "TimedModelSettings",
    ) -> None:
        self.model, self._train_step = train_step.model, train_step
        self.settings = settings
        self.batch, self._frame = batch, frame
        self._buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._weights = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        most = GRAPHS_PER_PLAN * settings.num_plans + OTHER_GRAPHS
        deployed = train_through_graphs(copy.deepcopy(self.model), False)
        deployed = for_inference(deployed, AUTOCAST_DTYPE if settings.amp else None)
        self._deployed = use_graphs(deployed, settings.cuda_graphs, most)
        self._detector = Predictor(self._deployed, deployed.image_size, settings.amp)
        train_through_graphs(self.model.train(), settings.cuda_graphs, most)
        self._prepared: list[Prepared] = []
        self._statistics = {
            f"{path}.{name}": buffer
            for path, module in self.model.named_modules()
            if isinstance(module, _BatchNorm) and module.training
            for name, buffer in module.named_buffers(recurse=False)
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.model.parameters())).device

    def use(self, plan: Plan, turn: int) -> None:
        """Put a plan on the model that trains and on the one that detects, and set the random state.

        Args:
            plan: resolved or not.
            turn: decides the random state, with the seed of the settings.

        Raises:
            PlanError: the plan does not fit the model.
        """
        dtype = attention_dtype(self.settings.amp)
        for model in (self.model, self._deployed):
            if plan.resolve(model.sites) != model.plan:
                model.apply_plan(plan, dtype=dtype)
        seed_everything(self.settings.seed, turn)

    @property
    def steps_per_visit(self) -> int:
        """How many training steps ``train`` runs."""
        return STEPS_PER_VISIT[self.device.type]

    def run_training_trunk(self) -> None:
        """Preprocess the batch and run the trunk on it: where ``train`` begins, under any plan."""
        self._prepared = self._train_step.prepare(self.batch)

    def train(self) -> list[list[Measure]]:
        """Run training steps from the trunk on, at a learning rate of 0; statistics change (``restore``).

        They are launched one after another, as in a training; the host waits at the end.
        """
        launched = [self._train_step.launch(self._prepared, 0.0) for _ in range(self.steps_per_visit)]
        return [step.read() for step in launched]

    def run_detection_trunk(self) -> None:
        """Run both branches on the frame: where ``detect`` begins, under any plan."""
        self._features = self._detector.read(self._frame)

    def detect(self) -> object:
        """Detect in one frame from its features on; the boxes are on the host afterwards."""
        return self._detector.detect(self._features)

    def restore(self) -> None:
        """Set the running statistics back to what they were before the first step.

        Frozen parts are not touched: they may keep what they computed from their tensors' versions.
        """
        with torch.no_grad():
            for name, buffer in self._statistics.items():
                buffer.copy_(self._buffers[name])

    def check_unchanged(self) -> None:
        """Refuse a model whose weights or statistics are not, bit for bit, those of the start.

        Raises:
            TrialError: names the first tensor that has changed.
        """
        now: dict[str, Tensor] = dict(self.model.named_parameters())
        before = self._weights | self._buffers
        for name, tensor in (now | dict(self.model.named_buffers())).items():
            if not torch.equal(tensor, before[name]):
                raise TrialError(
                    f"the stopwatch changed {name}, although it trains at a learning rate of 0, so its times "
                    f"are not those of one model; report it as a fault"
                )


@dataclass(frozen=True)
class TimedModelSettings:
    """How a model is timed.

    Attributes:
        num_plans: plans that it is timed under.
        amp: bfloat16 autocast.
        cuda_graphs: train and detect through CUDA graphs, on a GPU.
        seed: of denoising and dropout.
    """

    num_plans: int
    amp: bool = False
    cuda_graphs: bool = True
    seed: int = 0


def timed_model_of(settings: TrialSettings, folder: Path, num_plans: int) -> TimedModel:
    """Build the model of a trial with a batch of its training data and a frame of its validation data.

    Of the first ``BATCHES`` batches it takes the one with the median number of boxes, and the frame in the
    middle of the validation split.

    Args:
        settings: the trial; one worker runs, and on a CPU one thread.
        folder: where a broken frame would be listed; made if missing.
        num_plans: see ``TimedModelSettings``.

    Raises:
        TrialError, DataError, PlanError, CheckpointError: the settings cannot be met.
    """
    session = LocalSession(folder, settings.device)
    check(settings, folder, session.device)
    deterministic(session.device, threads=1)
    # Loaders would be processes of a process of the stopwatch, which may have none; the batches are the same.
    here = replace(settings, data=replace(settings.data, num_loader_workers=0))
    cohort = Cohort([Arm(here, session)])
    (trainer,) = cohort.trainers
    batches = sorted((collate(samples) for samples in cohort.batches(0, BATCHES)), key=num_boxes)
    source = cohort.split.source
    frame = trainer.detector.prepare([source[len(source) // 2]])
    train = cohort.settings.train
    timed = TimedModelSettings(num_plans, train.amp, train.cuda_graphs, settings.seed)
    return TimedModel(trainer.train_step, batches[len(batches) // 2], frame, timed)


def num_boxes(batch: Mapping[str, Any]) -> int:
    """Return the number of annotated boxes in a collated batch."""
    samples: Sequence[Any] = batch["data_samples"]
    return sum(len(sample.gt_instances_3d) for sample in samples)
