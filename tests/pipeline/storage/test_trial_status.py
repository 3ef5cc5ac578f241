"""A trial's status: whole, whoever writes it; of a folder without one; refused if it cannot be read."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from pipeline.metrics.rows import Row, append_rows
from pipeline.storage.trial_status import (
    RowsDigest,
    StatusError,
    TrialSession,
    TrialState,
    TrialStatus,
    read_status,
    rows_digest,
    set_mlflow_run_id,
    update_status,
)

EVERYTHING = TrialStatus(
    TrialState.FAILED,
    (TrialSession(1.0, 0.5, 2.5), TrialSession(3.0, 1.0)),
    "it broke",
    "Traceback ...",
    RowsDigest(12, "abc"),
    "run-1",
)


def test_what_is_written_is_read(tmp_path):
    assert update_status(tmp_path, lambda _: EVERYTHING) == EVERYTHING
    assert read_status(tmp_path) == EVERYTHING
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "FAILED"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["status.json"], "nothing is left"


def test_a_folder_without_a_status_was_started_if_it_holds_rows(tmp_path):
    assert read_status(tmp_path).state == TrialState.PENDING
    append_rows(tmp_path / "rows.jsonl", [Row("s", "t", "p", "loss", "", 1.0)])
    assert read_status(tmp_path).state == TrialState.RUNNING


def test_the_run_in_mlflow_is_kept_beside_what_was_there(tmp_path):
    update_status(tmp_path, lambda _: EVERYTHING)
    set_mlflow_run_id(tmp_path, "run-2")
    assert read_status(tmp_path) == replace(EVERYTHING, mlflow_run_id="run-2")


def add_sessions(trial, number):
    session = TrialSession(0.0, 1.0, 3600.0)
    for _ in range(number):
        update_status(trial, lambda status: replace(status, sessions=(*status.sessions, session)))


def test_no_change_is_lost_to_another_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_sessions, args=(tmp_path, 20)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for number in range(20):
        set_mlflow_run_id(tmp_path, f"run-{number}")
    for writer in writers:
        writer.join()
    status = read_status(tmp_path)
    assert (len(status.sessions), status.mlflow_run_id) == (40, "run-19")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"state": "ODD", "sessions": [], "error": "", "details": "", "rows": null}'],
)
def test_what_is_no_status_is_refused_by_name(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(StatusError, match=r"status\.json: cannot be read as the status of a trial"):
        read_status(tmp_path)


@pytest.mark.parametrize("name", ["BEGUN.json", "DONE.json", "FAILED.json"])
def test_a_trial_of_the_version_before_is_refused_with_its_name(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(StatusError) as caught:
        read_status(tmp_path)
    wanted = "was written by Biaswise 0.1.0; read it with that version (commit da22db2)"
    assert str(caught.value) == f"{tmp_path} {wanted}"


def test_hours_of_a_session_end_with_it_or_now():
    assert TrialSession(0.0, 1.0, 1800.0).hours(now=7200.0) == 0.5
    assert TrialSession(0.0, 1.0).hours(now=7200.0) == 2.0
    assert TrialSession(10.0, 1.0).hours(now=0.0) == 0.0  # killed before its first sign of life


def test_the_digest_of_no_rows(tmp_path):
    assert rows_digest(tmp_path / "rows.jsonl").num_bytes == 0
