"""Which trials can be one cohort: those that are equal but for their plan."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.config.plan import Plan
from pipeline.config.same_but_plan import refuse_more_than_plan, same_but_plan
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError

Trial = Callable[..., TrialSettings]
OTHER = Plan.of({"*": "none/sdpa_math"})


def test_trials_with_other_plans_can_be_a_cohort(trial: Trial) -> None:
    one, other = trial(), replace(trial(), plan=OTHER, plan_mixture=(OTHER,))
    refuse_more_than_plan([one, other])
    assert same_but_plan(one, other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 3}, r"trial 3 differs from the first in settings\.seed \(3, not 0\)"),
        ({"batch_size": 1}, r"settings\.train\.batch_size \(1, not 2\)"),
        ({"conditions": ("clean", "no_lidar")}, r"settings\.conditions"),
    ],
)
def test_another_difference_is_refused_by_name(trial: Trial, given: dict[str, object], message: str) -> None:
    trials = [trial(), replace(trial(), plan=OTHER), trial(**given)]
    assert not same_but_plan(trials[0], trials[2])
    with pytest.raises(TrialError, match=message):
        refuse_more_than_plan(trials)


def test_a_cohort_of_nobody_is_refused() -> None:
    with pytest.raises(TrialError, match="at least one trial"):
        refuse_more_than_plan([])
