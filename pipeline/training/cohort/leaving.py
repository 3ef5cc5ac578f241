"""Which errors let one arm leave its cohort while the others go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.config.plan import PlanError
from pipeline.errors import DivergedError, TrialMemoryError, is_user_error
from pipeline.storage.checkpoint import CheckpointError
from pipeline.training.cohort.arm import Arm

ALIKE_ON_ALL_RANKS = (DivergedError, PlanError, CheckpointError)
"""Errors of an arm that all ranks meet at the same point, so that the arm can leave a cohort of several."""

Left = Callable[[Arm, Exception | None], None]
"""Gets an arm that has left its cohort, and its error; None: it is done, or was stopped early."""


def raise_error(_: Arm, error: Exception | None) -> None:
    """Raise the error of an arm, if it has one: what a trial that runs alone does."""
    if error is not None:
        raise error


@contextmanager
def own_errors(arm: Arm, left: Left) -> Iterator[None]:
    """Let an arm leave if an error concerns it alone; any other error is raised.

    Args:
        arm: what runs inside.
        left: told of the arm that leaves.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        alone = is_user_error(error) and not isinstance(error, TrialMemoryError)
        if not alone or (arm.session.world_size > 1 and not isinstance(error, ALIKE_ON_ALL_RANKS)):
            raise
        left(arm, error)
