"""How a study on disk stands."""

import json

import pytest

from pipeline.tracking.study_reader import study_state


@pytest.mark.parametrize(
    ("waves", "state"),
    [
        ({"waves": [{"look": 1}]}, "RUNNING"),
        ({"waves": [{"look": 1}], "ended": {"state": "settled"}}, "FINISHED"),
    ],
)
def test_a_sequential_study_ends_before_all_trials_that_it_may_run(tmp_path, waves, state):
    (tmp_path / "study.json").write_text(json.dumps({"trials": ["a", "b"]}))
    assert study_state(tmp_path) == "RUNNING"
    (tmp_path / "waves.json").write_text(json.dumps(waves))
    assert study_state(tmp_path) == state
