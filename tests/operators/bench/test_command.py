"""The benchmark: gates on correctness, refuses in words, writes rows, table and plots."""

import argparse
from dataclasses import replace

import pytest
import torch

from operators.bench import command
from operators.bench.report import best_unbiased, floor_ms, write_report
from operators.bench.rows import BenchRow, read_rows, write_rows
from operators.bench.summary import ratios, straightness
from operators.impl import reference


def arguments(tmp_path, *options):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(
        ["--out", str(tmp_path / "bench"), "--shapes", "mini", "--budget-ms", "1", *options]
    )


def few(tmp_path):
    return arguments(
        tmp_path, "--kinds", "none,window", "--impls", "reference,sdpa_math,sdpa_flash,sdpa_cudnn"
    )


def row(**fields):
    place = {"suite": "shapes", "shape": "r50", "impl": "rects", "bias": "window", "mode": "forward"}
    sizes = {"batch": 1, "heads": 8, "queries": 900, "keys": 22_384, "head_size": 32, "dtype": "bfloat16"}
    origin = {"device": "NVIDIA H200", "versions": "torch=2", "commit": "abc", "time": 0.0}
    base = BenchRow(
        **place, metric="latency", unit="ms", **sizes, **origin, value=0.2, low=0.1, high=0.3, n=10
    )
    return replace(base, **fields)


def test_writes_rows_table_and_plots(tmp_path, capsys):
    assert command.main(few(tmp_path)) == 0
    folder = tmp_path / "bench"
    rows = read_rows(folder / "rows.parquet")
    assert {r.metric for r in rows} >= {"latency", "error_over_budget"}
    assert all(r.low <= r.value <= r.high for r in rows if r.metric == "latency" and not r.note)
    text = (folder / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| window | reference |" in text
    assert "kernel gives no gradient to a bias" in text  # flash on a CPU, cuDNN on a GPU
    assert (folder / "ratios.png").stat().st_size > 0


def test_what_is_wrong_gets_no_time(tmp_path, monkeypatch):
    right = reference.forward

    def wrong(q, k, v, *, scale, bias=None):
        return right(q, k, v, scale=scale * (1 if bias is None else 1.5), bias=bias)

    from operators.impl import sdpa

    monkeypatch.setattr(sdpa.Pinned, "forward", lambda self, *args, **named: wrong(*args, **named))
    command.main(few(tmp_path))
    rows = [r for r in read_rows(tmp_path / "bench" / "rows.parquet") if r.metric == "latency"]
    broken = next(r for r in rows if (r.impl, r.bias, r.mode) == ("sdpa_math", "window", "forward"))
    assert broken.value != broken.value
    assert "times its budget, so it is not timed" in broken.note


def test_refuses_unknown_shapes_and_a_cpu_for_real_ones(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown shapes r51; expected some of real, mini, cpu, r50 B1 Q900"
    ):
        next(command.run_bench(arguments(tmp_path, "--shapes", "mini B1 Q40,r51")))
    with pytest.raises(ValueError, match="unknown bias kinds windows; expected some of none, global"):
        next(command.run_bench(arguments(tmp_path, "--kinds", "windows")))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU here: the decoder's shapes and --growth need one"):
            next(command.run_bench(arguments(tmp_path, "--shapes", "real")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the benchmark takes the GPU, and gathered has none")
def test_a_cpu_has_the_minis_keys_and_those_of_r50(tmp_path):
    options = ("--shapes", "cpu", "--kinds", "local", "--impls", "gathered")
    first = next(command.run_bench(arguments(tmp_path, *options)))
    assert (first.shape, first.keys, first.metric) == ("mini B2 Q240", 3184, "error_over_budget")
    assert first.value <= 1
    assert [sizes.grid.num_keys for sizes in command.SETS["cpu"].values()] == [3184, 22_384]


def test_rows_survive_the_disk(tmp_path):
    rows = [row(), row(mode="forward_backward", value=0.5)]
    write_rows(rows, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == rows


def test_floor_is_that_of_the_attention_study():
    # facts/attention_study.md, section 1: exponentials bound the forward pass, 0.042 ms at r50 B1 Q900
    assert floor_ms(row()) == pytest.approx(0.042, abs=5e-4)
    assert floor_ms(row(batch=2, queries=1500, keys=56_400)) == pytest.approx(0.350, abs=5e-4)
    assert floor_ms(row(device="cpu")) is None


def test_ratios_are_to_the_best_without_a_bias(tmp_path):
    rows = [
        row(value=0.3),
        row(bias="none", value=0.4, impl="sdpa_flash"),
        row(bias="none", value=0.2, impl="flash"),
        row(bias="none", value=float("nan"), impl="flex", note="out of memory"),
    ]
    assert best_unbiased(rows, "r50", "forward").impl == "flash"
    text = write_report(rows, tmp_path)
    assert "| window | rects | 0.300 | 0.100 .. 0.300 | 1.50 | 7.2 |" in text
    assert "| none | flex | out of memory |" in text


def test_growth_becomes_a_table_and_a_plot(tmp_path):
    rows = [row(suite="keys", keys=k, value=k / 1e5) for k in (5_000, 50_000)]
    text = write_report([row(), *rows], tmp_path)
    assert "| 900 | 5000 | 0.050 |" in text
    assert (tmp_path / "growth_keys.png").stat().st_size > 0


def test_an_interrupted_run_keeps_what_it_measured(tmp_path, monkeypatch):
    measured = command.measure

    def stops(run, case, impl, place, mode):
        if case.kind == "window":
            raise KeyboardInterrupt
        yield from measured(run, case, impl, place, mode)

    monkeypatch.setattr(command, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        command.main(few(tmp_path))
    assert {r.bias for r in read_rows(tmp_path / "bench" / "rows.parquet")} == {"none", "window"}


def test_the_summary_divides_by_the_right_peer():
    rows = [
        row(value=0.12),
        row(bias="none", value=0.1),
        row(bias="none", impl="sdpa_flash", value=0.2),
        row(bias="none", impl="flash", value=0.08),
        row(bias="local", value=0.02),
        row(mode="forward_backward", value=0.5),
        row(mode="forward_backward", impl="sdpa_efficient", value=5.0),
        row(mode="forward_backward", impl="flex", value=9.0),
        row(mode="forward_backward", bias="none", impl="flash", value=0.4),
        row(mode="forward_backward", metric="peak_extra", value=30.0),
        row(mode="forward_backward", metric="peak_extra", impl="sdpa_efficient", value=1000.0),
    ]
    text = ratios(rows)
    assert "| window, forward / best without bias | 1.5 (flash) |" in text
    assert "| window, forward / `sdpa_flash` without bias | 0.6 (sdpa_flash) |" in text
    assert "| window, forward + backward / best without bias | 1.25 (flash) |" in text
    assert "| window, forward + backward / best other with it | 0.1 (sdpa_efficient) |" in text
    assert "| local mask, forward / best without bias | 0.25 (flash) |" in text
    assert f"| 30 / 1000 MiB = {0.03:.3f} |" in text


def test_a_line_is_fitted_and_its_worst_miss_is_told():
    curve = [row(suite="keys", keys=100_000 * n, value=0.1 + 0.5 * n) for n in (1, 2, 3, 4)]
    assert "| window / rects, forward | 0.500 | 0.0 % of the longest | " in straightness(
        curve, "keys", floor_ms
    )
    bent = [*curve[:-1], replace(curve[-1], value=4.1)]
    assert "| 0.0 % of the longest |" not in straightness(bent, "keys", floor_ms)
