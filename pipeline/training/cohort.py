"""Trains trials that differ in nothing but their plan together: a cohort.

``run_cohort`` is all of it. Every trial has its own session and folder, and its rows are those that it would
have alone.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.same_but_plan import refuse_more_than_plan
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialMemoryError, is_user_error
from pipeline.runtime.resource_errors import is_full_disk
from pipeline.runtime.session import Session
from pipeline.training.trial import run_trial


@dataclass(frozen=True)
class Arm:
    """A trial of a cohort: its settings, and where it runs; its name is ``session.folder.name``."""

    settings: TrialSettings
    session: Session


@dataclass(frozen=True)
class ArmEnd:
    """How a trial of a cohort ended.

    Attributes:
        trial: its name.
        error: one sentence; empty if the trial is done or was stopped early.
        details: the traceback of the error.
    """

    trial: str
    error: str = ""
    details: str = ""


def _nobody(_: ArmEnd) -> None:
    """Do nothing when an arm has ended."""


def run_cohort(
    arms: Sequence[Arm],
    early_stopping: EarlyStopping | None = None,
    ended: Callable[[ArmEnd], None] = _nobody,
) -> list[ArmEnd]:
    """Run trials to their ends, or continue from their newest checkpoints.

    Args:
        arms: the trials; every rank gives the same ones in the same order.
        early_stopping: where they are measured before their ends, and may be stopped; None: nowhere.
        ended: called on every rank as soon as a trial is done, is stopped early or fails; the others go on.

    Returns:
        How every trial ended, in the order of ``arms``.

    Raises:
        TrialMemoryError: memory of the device or the host ran out; fewer arms may fit.
        TrialError, DataError: something that concerns all arms: unequal settings, missing data, a full disk.
    """
    refuse_more_than_plan([arm.settings for arm in arms])
    ends = []
    for arm in arms:
        ends.append(_run(arm, early_stopping))
        ended(ends[-1])
    return ends


def _run(arm: Arm, early_stopping: EarlyStopping | None) -> ArmEnd:
    name = arm.session.folder.name
    try:
        run_trial(arm.settings, arm.session, early_stopping)
    except (ValueError, RuntimeError) as error:
        alone = is_user_error(error) and not isinstance(error, TrialMemoryError) and not is_full_disk(error)
        if not alone or arm.session.world_size > 1:
            raise
        return ArmEnd(name, str(error), traceback.format_exc())
    return ArmEnd(name)
