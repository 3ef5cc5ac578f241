"""Rows survive the disk, crashes and NaN; broken files are refused with file and line."""

import json
import math
from dataclasses import asdict, fields, replace

import pytest

from pipeline.metrics.rows import (
    Row,
    RowsError,
    append_rows,
    last_seal,
    read_rows,
    read_study,
    seal_fault,
    select,
)

ROW = Row(
    "study", "trial", "a.0.cross=none/flex", "NDS", "fraction", 0.1 + 0.2, condition="clean", seed=3, time=1.5
)


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    rows = [
        ROW,
        Row("s", "t", "p", "loss", "nats", -1e-300, spread=2.5, n=7, site="a.0.cross", scene="scene-0003"),
    ]
    append_rows(tmp_path / "new" / "rows.jsonl", rows[:1])
    append_rows(tmp_path / "new" / "rows.jsonl", rows[1:])
    read = read_rows(tmp_path / "new" / "rows.jsonl")
    assert [repr(row) for row in read] == [repr(row) for row in rows]


@pytest.mark.parametrize("column", ["value", "spread", "time"])
def test_nan_is_null_on_disk_and_nan_again_in_memory(tmp_path, column):
    append_rows(tmp_path / "rows.jsonl", [Row(**{**asdict(ROW), column: math.nan})])
    assert json.loads((tmp_path / "rows.jsonl").read_text())[column] is None
    assert math.isnan(getattr(read_rows(tmp_path / "rows.jsonl")[0], column))


def test_a_cut_last_line_is_dropped_and_said(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW, ROW])
    path.write_text(path.read_text()[:-20])
    with pytest.warns(UserWarning, match="cut short"):
        assert len(read_rows(path)) == 1


def broken(**changes):
    return json.dumps({**asdict(ROW), "spread": None, **changes})


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"study": "s"}', broken(colour="red")])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW])
    path.write_text(path.read_text() + line + "\n")
    append_rows(path, [ROW])
    with pytest.raises(RowsError, match=r"rows\.jsonl, line 2: not a row"):
        read_rows(path)


def test_a_study_is_the_union_of_its_trials(tmp_path):
    for trial in ("b", "a"):
        append_rows(
            tmp_path / "trials" / trial / "rows.jsonl", [Row("s", trial, "p", "NDS", "fraction", 0.5)]
        )
    assert [row.trial for row in read_study(tmp_path)] == ["a", "b"]
    assert read_study(tmp_path / "nothing") == []


def test_select_matches_every_field_given():
    rows = [ROW, Row(**{**asdict(ROW), "condition": "no_lidar"})]
    assert list(select(rows, metric="NDS", condition="clean")) == rows[:1]
    assert list(select(rows, metric="mAP")) == []
    with pytest.raises(AttributeError):
        list(select(rows, colour="red"))


def test_every_column_is_a_plain_value():
    assert {field.type for field in fields(Row)} <= {str, int, float}


def sealed(path, count=4):
    for step in range(count):  # in several writes, as a trial does it
        append_rows(path, [replace(ROW, step=step)])
    return path


def test_what_was_written_matches_its_seals(tmp_path):
    path = sealed(tmp_path / "rows.jsonl")
    assert seal_fault(path, last_seal(path)) == ""
    path.write_text(path.read_text() + path.read_text().splitlines()[0][:50])  # a crash in the next write
    assert seal_fault(path) == ""


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda x: [x[0], x[1].replace('"seed": 3', '"seed": 4'), *x[2:]], "line 2 does not match its seal"),
        (lambda x: [x[0].replace("0.30000000000000004", "0.31"), *x[1:]], "line 1 does not match its seal"),
        (lambda x: [x[0], *x[2:]], "line 2 does not match its seal"),
        (lambda x: [x[1], x[0], *x[2:]], "line 1 does not match its seal"),
        (lambda x: [*x, x[-1]], "line 5 does not match its seal"),
        (lambda x: [*x[:2], x[2].partition(', "seal"')[0] + "}", x[3]], "line 3 has no seal"),
        (lambda x: x[:-1], "rows are missing at its end"),
    ],
    ids=["seed", "value", "removed", "moved", "doubled", "unsealed", "end"],
)
def test_an_edit_shows(tmp_path, edit, fault):
    path = sealed(tmp_path / "rows.jsonl")
    end = last_seal(path)
    lines = edit(path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))
    assert fault in seal_fault(path, end)


def test_rows_from_before_there_were_seals_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(broken() + "\n")
    assert [repr(row) for row in read_rows(path)] == [repr(ROW)]
    assert "has no seal" in seal_fault(path)
    assert last_seal(path) == ""
