"""Trials that train together have the rows that they have alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, ArmEnd, run_cohort

Trial = Callable[..., TrialSettings]


def test_unequal_trials_are_refused_before_anything_is_written(trial: Trial, tmp_path: Path) -> None:
    told: list[ArmEnd] = []
    arms = [Arm(trial(seed=seed), LocalSession(tmp_path / str(seed))) for seed in (0, 1)]
    with pytest.raises(TrialError, match=r"trial 2 differs from the first in settings\.seed"):
        run_cohort(arms, ended=told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []
