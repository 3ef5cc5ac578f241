"""Sessions of a trial: what a cohort's trials used adds up to what the cohort used."""

import pytest

from pipeline.storage import trial_sessions
from pipeline.storage.trial_sessions import begin_session, end_session, reopen
from pipeline.storage.trial_status import TrialState, read_status


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(trial_sessions, "time", clock)
    return clock


def gpu_seconds(trial):
    return sum(3600 * s.gpus * s.hours(0.0) for s in read_status(trial).sessions)


def worker_seconds(trial):
    return sum(3600 * s.share * s.hours(0.0) for s in read_status(trial).sessions)


def test_whenever_a_trial_ends_the_others_share_its_gpus(tmp_path, clock):
    cohort = [tmp_path / name for name in "abc"]
    for trial in cohort:
        begin_session(trial, 2.0, len(cohort))  # two GPUs
    for trial, end in zip(cohort, (1030.0, 1050.0, 1060.0), strict=True):
        clock.now = end
        end_session(trial, cohort=cohort)
    used = [gpu_seconds(trial) for trial in cohort]
    assert used == pytest.approx([20.0, 20.0 + 20.0, 20.0 + 20.0 + 20.0])
    assert sum(used) == pytest.approx(2.0 * 60)
    assert [worker_seconds(trial) for trial in cohort] == pytest.approx([10.0, 20.0, 30.0])


def test_what_a_killed_cohort_used_stays_and_the_next_one_counts_anew(tmp_path, clock):
    cohort = [tmp_path / name for name in "ab"]
    for trial in cohort:
        begin_session(trial, 1.0, len(cohort))
    clock.now = 1010.0
    end_session(cohort[0], cohort=cohort)  # and then the driver is killed
    clock.now = 2000.0
    begin_session(cohort[1], 1.0)
    assert read_status(cohort[1]).sessions[0].end == 1000.0, "it wrote nothing: it ends where it began"
    clock.now = 2007.0
    end_session(cohort[1], cohort=cohort[1:])
    assert gpu_seconds(cohort[1]) == pytest.approx(7.0)
    assert gpu_seconds(cohort[0]) == pytest.approx(5.0)


def test_a_trial_that_ends_twice_keeps_its_first_end(tmp_path, clock):
    begin_session(tmp_path, 1.0)
    clock.now = 1010.0
    end_session(tmp_path)
    clock.now = 1500.0
    end_session(tmp_path, "its copy failed")
    assert read_status(tmp_path).state == TrialState.FAILED
    assert gpu_seconds(tmp_path) == pytest.approx(10.0)


def test_a_trial_that_is_opened_again_has_no_error_and_no_digest(tmp_path):
    begin_session(tmp_path, 0.0)
    end_session(tmp_path, "it broke", "Traceback")
    reopen(tmp_path)
    status = read_status(tmp_path)
    assert (status.state, status.error, status.details, status.rows) == (TrialState.RUNNING, "", "", None)
