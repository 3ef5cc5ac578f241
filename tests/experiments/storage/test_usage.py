"""Cost: by the trials' own account, else by their rows; the grid at the price of a trial that ended."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments.reporting.summary import summarize
from experiments.storage.usage import LONGEST_PAUSE_S, Used, used_by, used_by_trials
from pipeline.metrics.rows import Row, read_study
from pipeline.storage.trial_status import TrialSession
from tests.statuses import write_status

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
        write_status(golden / "trials" / name, sessions=(TrialSession(1000.0, 0.25, 1000.0 + seconds),))
    (golden / "trials/w01-s0/status.json").write_text("{")  # cannot be read: its rows count
    (cost,) = [table for table in summarize(golden).tables if table.name == "cost"]
    assert cost.lines[0] == ("this study", 8, 3.0, 0.75)
    assert cost.lines[1][1:] == (8, 3.0, 0.75)  # the study is its own full grid


def test_the_confirmation_is_a_line_of_its_own(golden):
    place = golden / "confirmation" / "trials" / "x"
    write_status(place, sessions=(TrialSession(1000.0, 0.0, 1900.0), TrialSession(5000.0, 0.0, 5900.0)))
    (cost,) = [table for table in summarize(golden).tables if table.name == "cost"]
    assert ("confirmation on fresh seeds", 1, 0.5, 0.0) in cost.lines


def test_a_trial_of_a_cohort_has_its_share_and_saves_what_was_done_once(tmp_path):
    write_status(tmp_path / "trials" / "t", sessions=(TrialSession(1000.0, 0.25, 1000.0 + 7200, share=0.25),))
    row = Row("s", "t", "p", "start_time", "s", 1000.0 + 720, device="NVIDIA H200")
    rows = [
        row,
        replace(row, metric="data_wait_ms", value=2000.0, step=900),  # half an hour in all
        replace(row, metric="step_trunk_ms", value=4000.0, step=900),  # an hour
        replace(row, metric="step_own_ms", value=9000.0, step=900),
    ]
    (used,) = used_by_trials(tmp_path, rows).values()
    assert used == Used(0.5, 0.5, pytest.approx(0.75 * (0.2 + 0.5 + 1.0)))
    assert used_by(tmp_path / "trials" / "t") == Used(0.5, 0.5)


def test_the_cost_of_trials_one_at_a_time_is_a_line_where_they_were_in_cohorts(golden):
    def cost():
        (table,) = [table for table in summarize(golden).tables if table.name == "cost"]
        return {line[0]: line[1:] for line in table.lines}

    alone = "its trials one at a time, at least"
    assert alone not in cost()
    rows = read_study(golden)
    start = min(row.time for row in rows) - 7200.0  # rows begin two hours after it: no wait, no trunk timed
    session = TrialSession(start, 0.125, start + 8 * 3600, 0.125)
    began = replace(rows[0], metric="start_time", unit="s", value=start + 7200.0, draw=None)
    for name in {row.trial for row in rows}:
        write_status(golden / "trials" / name, sessions=(session,))
        with (golden / "trials" / name / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(replace(began, trial=name))) + "\n")
    assert cost()["this study"] == (8, 8.0, 8.0)
    assert cost()[alone] == (8, pytest.approx(8.0 + 8 * 2.0 * 0.875), pytest.approx(8.0 + 8 * 2.0 * 0.875))
