"""Trains trials that differ in nothing but their plan together, in lock-step: a cohort. One trial is one too.

Rows and checkpoints of a trial are those that it would have alone. ``lockstep`` has the training loop,
``arm`` what each trial has to itself, ``shared`` what they have in common, ``leaving`` which errors concern
one alone.
"""

import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.same_but_plan import refuse_more_than_plan
from pipeline.errors import TrialError
from pipeline.runtime.determinism import deterministic
from pipeline.runtime.resource_errors import explain_resource_errors
from pipeline.storage.files import exclusive_writer
from pipeline.training.cohort.arm import Arm as Arm
from pipeline.training.cohort.leaving import Left, own_errors, raise_error
from pipeline.training.cohort.lockstep import Cohort as Cohort
from pipeline.training.preflight import check


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


def run_cohort(
    arms: Sequence[Arm],
    early_stopping: EarlyStopping | None = None,
    ended: Callable[[ArmEnd], None] = lambda _: None,
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
    ends: dict[int, ArmEnd] = {}

    def left(arm: Arm, error: Exception | None) -> None:
        name = arm.session.folder.name
        end = ArmEnd(name)
        if error is not None:
            end = ArmEnd(name, str(error), "".join(traceback.format_exception(error)))
        ends[id(arm.session)] = end
        ended(end)

    train_cohort(arms, early_stopping, left)
    return [ends[id(arm.session)] for arm in arms]


def train_cohort(
    arms: Sequence[Arm], early_stopping: EarlyStopping | None = None, left: Left = raise_error
) -> None:
    """Check and lock trials, and run them to their ends; see ``run_cohort``.

    Args:
        arms: the trials.
        early_stopping: see ``run_cohort``.
        left: told of every arm that leaves; what it raises ends the cohort.
    """
    refuse_more_than_plan([arm.settings for arm in arms])
    _refuse_other_places(arms)
    for arm in arms:
        check(arm.settings, arm.session.folder, arm.session.device)
    first = arms[0]
    deterministic(first.session.device, first.settings.torch_threads, first.settings.train.steps)
    with explain_resource_errors(first.settings, first.session.folder), ExitStack() as locks:
        held: dict[int, ExitStack] = {}

        def unlock(arm: Arm, error: Exception | None) -> None:
            held.pop(id(arm.session)).close()
            left(arm, error)

        for arm in arms:
            held[id(arm.session)] = locks.enter_context(ExitStack())
            with own_errors(arm, unlock):
                if arm.session.rank == 0:
                    held[id(arm.session)].enter_context(exclusive_writer(arm.session.folder))
        present = [arm for arm in arms if id(arm.session) in held]
        if present:
            Cohort(present, early_stopping, unlock).run()


def _refuse_other_places(arms: Sequence[Arm]) -> None:
    """Refuse arms whose sessions are not of one group of workers."""
    places = {(arm.session.rank, arm.session.world_size, arm.session.device) for arm in arms}
    if len(places) > 1:
        raise TrialError(f"the sessions of a cohort have one rank, world size and device, got {places}")
