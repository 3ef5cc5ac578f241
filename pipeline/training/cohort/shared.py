"""What the arms of a cohort have in common: when they are set up, and in a step."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.config.early_stopping import EarlyStopping
from pipeline.detector.acceleration.captured_passes import Recorders
from pipeline.evaluation.evaluator import ValidationSplit
from pipeline.metrics.timing import Moment
from pipeline.storage.checkpoint import FrozenPart
from pipeline.training.resolve_config import ResolvedTraining
from pipeline.training.step import Prepared


@dataclass(frozen=True)
class SharedParts:
    """What the arms of a cohort have in common when they are set up.

    Attributes:
        training: settings and config put together; its plans are those of one of the arms.
        optim_wrapper: of the config.
        split: what the arms are measured on.
        data: fingerprint of the data.
        early_stopping: where they are measured before their ends.
        recorders: of their CUDA graphs.
        frozen: the trunk, which their checkpoints leave out.
    """

    training: ResolvedTraining
    optim_wrapper: Any
    split: ValidationSplit
    data: str
    early_stopping: EarlyStopping
    recorders: Recorders
    frozen: FrozenPart


@dataclass(frozen=True)
class SharedStep:
    """What all arms have in common in a step.

    Attributes:
        index: of the step, from 0.
        tokens: of its frames, on this rank.
        wait_s: seconds until the loader gave the batch.
        begun: before collation.
        ended: after the trunk.
    """

    index: int
    tokens: tuple[str, ...]
    wait_s: float
    begun: Moment
    ended: Moment


@dataclass(frozen=True)
class StepInputs:
    """What all arms read in a step.

    Attributes:
        step: which it is.
        prepared: features of the trunk and ground truth, for each batch of the step.
        random_state: of torch on the CPU after the trunk, in which images may have been masked.
    """

    step: SharedStep
    prepared: list[Prepared]
    random_state: Tensor
