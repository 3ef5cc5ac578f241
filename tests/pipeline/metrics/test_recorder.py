"""Record: rows once each, also after a crash in the middle of a line."""

from pathlib import Path

from pipeline.metrics.recorder import Measure, RowRecorder
from pipeline.metrics.rows import Row, read_rows
from pipeline.metrics.versions import versions

COMMON = Row(study="s", trial="t", plan="p", metric="", unit="", value=0.0, seed=4, recipe_digest="r")


def test_rows_carry_what_they_share(tmp_path: Path) -> None:
    record = RowRecorder(tmp_path / "rows.jsonl", COMMON)
    record.add(7, [Measure("NDS", "fraction", 0.5, condition="clean", n=40)])
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row.study, row.trial, row.plan, row.seed, row.recipe_digest) == ("s", "t", "p", 4, "r")
    assert (row.metric, row.value, row.condition, row.step, row.n) == ("NDS", 0.5, "clean", 7, 40)
    assert row.time > 0


def test_a_resumed_trial_writes_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowRecorder(path, COMMON).add(1, [Measure("loss", "", 3.0)])
    record = RowRecorder(path, COMMON)
    record.add(1, [Measure("loss", "", 3.0), Measure("loss_cls", "", 1.0)])
    record.add(2, [Measure("loss", "", 2.0)])
    assert [(row.metric, row.step) for row in read_rows(path)] == [("loss", 1), ("loss_cls", 1), ("loss", 2)]
    assert record.has(2, "loss", "")
    assert not record.has(3, "loss", "")


def test_a_line_cut_short_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowRecorder(path, COMMON).add(1, [Measure("loss", "", 3.0), Measure("grad_norm", "", 9.0)])
    path.write_bytes(path.read_bytes()[:-20])
    RowRecorder(path, COMMON).add(1, [Measure("loss", "", 3.0), Measure("grad_norm", "", 9.0)])
    assert [row.metric for row in read_rows(path)] == ["loss", "grad_norm"]


def test_versions_name_torch() -> None:
    import torch

    assert f"torch={torch.__version__}" in versions().split(";")
