"""Early stopping: a rung changes no later bit, a floor stops the trial, and a kill changes nothing."""

import pytest

from pipeline.config.early_stopping import STOPPED, EarlyStopping
from pipeline.evaluation import evaluator
from pipeline.metrics.rows import read_rows, select
from pipeline.runtime.session import LocalSession
from pipeline.training.trial import run_trial


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    monkeypatch.setattr(evaluator, "CALLS", 1)


def numbers(folder):
    rows = read_rows(folder / "rows.jsonl")
    return {
        (row.metric, row.condition, row.site, row.step): row.value
        for row in rows
        if row.unit not in ("ms", "samples/s", "GiB", "s", "label")
    }


class Crash(BaseException):
    pass


class CrashingSession(LocalSession):
    def report_checkpoint(self, checkpoint):
        raise Crash


def test_a_rung_is_measured_and_changes_nothing_after_it(trial, tmp_path):
    run_trial(trial(), LocalSession(tmp_path / "plain"))
    run_trial(trial(), LocalSession(tmp_path / "rungs"), EarlyStopping(thresholds=((1, None), (3, 0.0))))
    plain, rungs = numbers(tmp_path / "plain"), numbers(tmp_path / "rungs")
    extra = {key for key in rungs if key not in plain}
    assert extra == {(metric, "clean", "", step) for metric in ("mAP", "NDS") for step in (1, 3)}
    assert {key: value for key, value in rungs.items() if key not in extra} == plain


def test_a_trial_below_the_floor_stops_there_and_says_so(trial, tmp_path):
    run_trial(trial(), LocalSession(tmp_path / "t"), EarlyStopping("mAP", thresholds=((1, None), (3, 2.0))))
    rows = read_rows(tmp_path / "t" / "rows.jsonl")
    (stopped,) = select(rows, metric=STOPPED)
    assert (stopped.value, stopped.unit, stopped.step) == (3, "steps", 3)
    assert {row.step for row in select(rows, metric="NDS")} == {1, 3}
    assert max(row.step for row in rows) == 3
    assert list(select(rows, metric="step_ms"))
    assert not (tmp_path / "t" / "weights.safetensors").exists()


def test_a_killed_trial_stops_where_the_unbroken_one_stopped(trial, tmp_path):
    rungs = EarlyStopping(thresholds=((1, None), (3, 2.0)))
    run_trial(trial(), LocalSession(tmp_path / "unbroken"), rungs)
    with pytest.raises(Crash):  # at the checkpoint after step 2
        run_trial(trial(), CrashingSession(tmp_path / "killed"), rungs)
    for _ in range(2):  # resumed, and run once more although it had stopped
        run_trial(trial(), LocalSession(tmp_path / "killed"), rungs)
        assert numbers(tmp_path / "killed") == numbers(tmp_path / "unbroken")


def test_where_a_trial_is_measured_and_below_what_it_stops():
    rungs = EarlyStopping("mAP", "no_lidar", ((10, None), (20, 0.25)))
    assert (rungs.has(10), rungs.has(15)) == (True, False)
    assert (rungs.stops(10, -1.0), rungs.stops(20, 0.24), rungs.stops(20, 0.25)) == (False, True, False)
