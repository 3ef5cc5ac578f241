"""A study survives what matters most; `python -m tests.chaos.run` tries more kinds at more moments."""

import sys

import pytest

from tests.chaos.stage import stage
from tests.chaos.strike import perform

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc"),
]

SEEDS = {"worker": 2, "study_driver": 17, "hang": 3}
"""Kind -> seed of a run that strikes in mid-training, with one trial under way."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    with stage(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.mark.parametrize("fault", SEEDS)
def test_nothing_is_lost_doubled_or_judged_otherwise(ready, fault):
    result = perform(ready, fault, SEEDS[fault])
    assert result.well, result
    assert result.seconds_lost is not None, result  # else the fault came too late to be one
    if fault in ("worker", "hang"):
        assert (result.tally.restarts, result.resumes) == (1, 0), result
    if fault == "study_driver":
        assert result.resumes == 1, result
