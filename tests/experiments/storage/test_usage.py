"""Cost: by the trials' own account, else by their rows; the grid at the price of a trial that ended."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.reporting.summary import summarize
from experiments.storage.usage import LONGEST_PAUSE_S, Used, used_by_trials
from pipeline.metrics.rows import Row

GOLDEN = Path(__file__).parents[2] / "golden" / "report"


@pytest.fixture
def golden(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def test_rows_count_from_first_to_last_without_long_pauses(tmp_path):
    row = Row("s", "t", "p", "loss", "1", 1.0, device="NVIDIA H200")
    times = [0.0, 1800.0, 1800.0 + LONGEST_PAUSE_S + 1, 3600.0 + LONGEST_PAUSE_S + 1]
    rows = [replace(row, time=time) for time in (times[2], times[0], times[3], times[1])]
    assert used_by_trials(tmp_path, rows) == {"t": Used(1.0, 1.0)}
    assert used_by_trials(tmp_path, [replace(one, device="cpu") for one in rows]) == {"t": Used(1.0, 0.0)}


def test_what_a_trial_says_itself_counts_first(golden):
    for name, seconds in (("w00-s0", 7200), ("w11-s1", 3600)):
        ended = {"seconds": seconds, "gpu_hours": seconds / 3600 / 4}
        (golden / f"trials/{name}/DONE.json").write_text(json.dumps(ended))
    (golden / "trials/w01-s0/FAILED.json").write_text("{")  # cut short: its rows count
    (cost,) = [table for table in summarize(golden).tables if table.name == "cost"]
    assert cost.lines[0] == ("this study", 8, 3.0, 0.75)
    assert cost.lines[1][1:] == (8, 3.0, 0.75)  # the study is its own full grid


def test_the_confirmation_is_a_line_of_its_own(golden):
    place = golden / "confirmation" / "trials" / "x"
    place.mkdir(parents=True)
    (place / "DONE.json").write_text(json.dumps({"seconds": 1800, "gpu_hours": 0.0}))
    (cost,) = [table for table in summarize(golden).tables if table.name == "cost"]
    assert ("confirmation on fresh seeds", 1, 0.5, 0.0) in cost.lines
