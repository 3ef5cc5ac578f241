"""Rows survive the disk, crashes and NaN; broken files are refused with file and line."""

import json
import math
from dataclasses import asdict, fields, replace

import pytest

from pipeline.metrics.rows import (
    Row,
    RowsError,
    append_rows,
    is_unchanged,
    read_rows,
    read_study,
    rows_digest,
    select,
)

ROW = Row(
    "study", "trial", "a.0.cross=none/flex", "NDS", "fraction", 0.1 + 0.2, condition="clean", seed=3, time=1.5
)


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    rows = [
        ROW,
        Row(
            "s", "t", "p", "loss", "nats", -1e-300, half_iqr60=2.5, n=7, site="a.0.cross", scene="scene-0003"
        ),
        Row("s", "t", "p", "kernel_ms", "ms", 2.0, site="a.0.cross", kernel="aten::bmm"),
        Row("s", "t", "p", "NDS", "fraction", 0.5, draw=0, n=150),
    ]
    append_rows(tmp_path / "new" / "rows.jsonl", rows[:1])
    append_rows(tmp_path / "new" / "rows.jsonl", rows[1:])
    read = read_rows(tmp_path / "new" / "rows.jsonl")
    assert [repr(row) for row in read] == [repr(row) for row in rows]


@pytest.mark.parametrize("column", ["value", "half_iqr60", "time"])
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
    return json.dumps({**asdict(ROW), "half_iqr60": None, **changes})


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"study": "s"}', broken(colour="red"), broken(seed=None), broken(draw="~1")]
)
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
    assert {field.type for field in fields(Row)} <= {str, int, float, int | None}


def written(path, count=4):
    for step in range(count):  # in several writes, as a trial does it
        append_rows(path, [replace(ROW, step=step)])
    return path


def test_what_was_written_matches_its_digest(tmp_path):
    path = written(tmp_path / "rows.jsonl")
    digest = rows_digest(path)
    assert is_unchanged(path, digest)
    path.write_text(path.read_text() + path.read_text().splitlines()[0][:50])  # a crash in the next write
    assert rows_digest(path) == digest
    assert is_unchanged(path, digest, grown=True)
    assert rows_digest(tmp_path / "nothing.jsonl").num_bytes == 0


@pytest.mark.parametrize(
    "edit",
    [
        lambda x: [x[0], x[1].replace('"seed": 3', '"seed": 4'), *x[2:]],
        lambda x: [x[0].replace("0.30000000000000004", "0.31"), *x[1:]],
        lambda x: [x[0], *x[2:]],
        lambda x: [x[1], x[0], *x[2:]],
        lambda x: [x[0], *x],
        lambda x: x[:-1],
    ],
    ids=["seed", "value", "removed", "moved", "doubled", "end"],
)
def test_an_edit_shows(tmp_path, edit):
    path = written(tmp_path / "rows.jsonl")
    digest = rows_digest(path)
    lines = edit(path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))
    assert not is_unchanged(path, digest)
    assert not is_unchanged(path, digest, grown=True)


def test_rows_added_at_the_end_show_unless_the_trial_ran_again(tmp_path):
    path = written(tmp_path / "rows.jsonl")
    digest = rows_digest(path)
    append_rows(path, [ROW])
    assert not is_unchanged(path, digest)
    assert is_unchanged(path, digest, grown=True)


def test_rows_of_the_version_before_are_refused_with_its_name(tmp_path):
    record = json.loads(broken())
    del record["kernel"], record["draw"], record["half_iqr60"], record["recipe_digest"]
    old = {**record, "spread": None, "recipe": "abc", "seal": "0123456789ab"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(old) + "\n")
    with pytest.raises(RowsError) as caught:
        read_rows(path)
    wanted = "was written by Biaswise 0.1.0; read it with that version (commit da22db2)"
    assert str(caught.value) == f"{path} {wanted}"
