"""A benchmark of the mini model: every number is there, equal plans have equal losses, no memory is a row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.plan import Plan, PlanError
from pipeline.metrics.memory import PeakMemory
from pipeline.metrics.recorder import Measure
from pipeline.metrics.rows import read_rows
from pipeline.training.benchmark import (
    BenchmarkError,
    BenchmarkSettings,
    _run_in_memory,
    named_plans,
    run_benchmark,
)

SMALL = {
    "model.image_size": [48, 112],
    "model.pts_branch.grid_shape": [64, 64],
    "model.pts_bbox_head.num_query": 24,
    "model.pts_bbox_head.depth_num": 8,
}
BENCH = BenchmarkSettings(
    config="experiments/configs/cmt_aqr_pillar_mini.py",
    device="cpu",
    steps=8,
    calls=1,
    frames=1,
    sweeps=1,
    boxes=6,
    parts=True,
    overrides=tuple((key, json.dumps(value)) for key, value in SMALL.items()),
)
SAME = Plan.of({"aqr.*": "none/sdpa_math", "decoder.*": "none/sdpa_math"})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    named = named_plans(cuda=False)
    found = run_benchmark(BENCH, {"plain": named["plain"], "same": SAME, "dense": named["dense"]}, folder)
    assert [str(r) for r in read_rows(folder / "rows.jsonl")] == [str(r) for r in found]
    return found


def values(rows: list[Any], metric: str) -> dict[str, float]:
    return {row.trial.partition("@")[0]: row.value for row in rows if row.metric == metric}


def test_every_plan_has_every_number(rows: list[Any]) -> None:
    metrics = ["step_ms", "train_samples_per_s", "train_peak_resident_gib", "loss_first", "loss_last"]
    metrics += [f"inference_{name}" for name in ("latency_p50_ms", "frames_per_s", "peak_resident_gib")]
    for metric in metrics:
        found = values(rows, metric)
        assert set(found) == {"plain", "same", "dense"}, metric
        assert all(0 < value < float("inf") for value in found.values()), metric


def test_training_learns_and_the_plan_alone_makes_the_difference(rows: list[Any]) -> None:
    first, last = values(rows, "loss_first"), values(rows, "loss_last")
    assert last["plain"] < first["plain"]
    assert last["plain"] == last["same"] != last["dense"]


def test_the_parts_are_timed(rows: list[Any]) -> None:
    named = [row.metric.partition("/") for row in rows if row.trial.startswith("dense@")]
    parts = {module for metric, _, module in named if metric == "inference_module_ms"}
    assert {"img_backbone", "img_neck", "pts_branch", "pts_bbox_head"} <= parts
    assert {"pts_bbox_head.aqr", "pts_bbox_head.transformer.decoder"} <= parts


def test_rows_of_a_benchmark_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(BenchmarkError, match="is there already; name another folder"):
        run_benchmark(BENCH, {"config": None}, tmp_path)


def test_a_plan_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="matches no site"):
        run_benchmark(BENCH, {"config": None, "odd": Plan.of({"decoder.9.*": "none/sdpa_math"})}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_is_a_result() -> None:
    def train(_: PeakMemory) -> list[Measure]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = _run_in_memory("train", train, torch.device("cpu"))
    assert [m.metric for m in found] == ["train_out_of_memory", "train_peak_resident_gib"]
