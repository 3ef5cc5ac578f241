"""Whether trials can be trained together: equal settings but for their plan."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError

OWN = ("plan", "plan_mixture")
"""Fields of ``TrialSettings`` in which the trials of a cohort may differ."""


def refuse_more_than_plan(trials: Sequence[TrialSettings]) -> None:
    """Refuse trials that cannot be one cohort.

    Args:
        trials: one after another; the others are compared with the first.

    Raises:
        TrialError: there is no trial, or one differs in more than its plan; names the first such field.
    """
    if not trials:
        raise TrialError("a cohort needs at least one trial, and got none")
    first = trials[0]
    for i, other in enumerate(trials[1:], start=2):
        difference = _difference(first, other)
        if difference:
            raise TrialError(
                f"a cohort trains trials that are equal but for their plan; trial {i} differs from the first "
                f"in {difference}; train them in different cohorts"
            )


def same_but_plan(one: TrialSettings, other: TrialSettings) -> bool:
    """Return whether two trials differ in nothing but their plan."""
    return not _difference(one, other)


def _difference(one: TrialSettings, other: TrialSettings) -> str:
    """Return the first field in which two trials differ besides their plans, with both values."""
    other = replace(other, **{name: getattr(one, name) for name in OWN})
    return "" if one == other else _first(one, other, "settings")


def _first(one: Any, other: Any, at: str) -> str:
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if a == b:
            continue
        place = f"{at}.{field.name}"
        return _first(a, b, place) if hasattr(a, "__dataclass_fields__") else f"{place} ({b!r}, not {a!r})"
    return ""
