"""Prices: from the trials' step times, and from the operator benchmark as computed on paper."""

import math
from dataclasses import replace

import pytest

from experiments.analysis.decide import weigh
from experiments.analysis.price import ERROR_OF_MEDIAN, SD_OF_SPREAD
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from operators.bench.rows import BenchRow
from tests.experiments.planted_rows import Truth, plant

SITES = ("decoder.0.cross", "decoder.1.cross")
FP64 = 1e-9
BENCHED = DecisionRule(priced_by="bench")


def timed(bias, impl, ms, **changes):
    row = BenchRow(
        *("shapes", "r50 B2", impl, bias, "forward_backward", "latency", "ms"),
        *(2, 8, 1500, 22_384, 32, "float16", "H200", "", "", 0.0),
        value=ms,
        low=0.99 * ms,
        high=1.01 * ms,
        n=100,
    )
    return replace(row, **changes)


BENCH = [
    timed("none", "flash", 2.0),
    timed("none", "sdpa_math", 9.0),
    timed("window", "rects", 6.0),
    timed("window", "flex", 8.0),
    timed("window", "lowrank", 1.0),  # cut off at some rank: another meaning, and no price of this one
    timed("window", "reference", math.nan),
    timed("window", "rects", 0.1, mode="forward"),
]


def rows():
    # a step without any bias takes 400 ms; what it takes with one is not asked here
    return plant(Truth(dict.fromkeys(SITES, 0.0), dict.fromkeys(SITES, 50.0), time_noise_percent=0))


def test_a_bias_is_priced_by_its_fastest_exact_implementation():
    evidence = weigh(rows(), BENCHED, BENCH)
    for verdict in evidence.verdicts:
        assert verdict.slowdown_percent == pytest.approx(100 * (6 - 2) / 400, abs=FP64)
        assert verdict.price == pytest.approx(0.1, abs=FP64)
        error = ERROR_OF_MEDIAN * SD_OF_SPREAD * 0.02 * math.hypot(6, 2) / math.sqrt(100)
        assert 0 < verdict.price_high - verdict.price < 10 * 10 * error / 400
    assert any("window by rects 6 ms" in note for note in evidence.notes)


def test_trials_price_themselves_otherwise():
    for verdict in weigh(rows(), DecisionRule(), BENCH).verdicts:
        assert verdict.slowdown_percent == pytest.approx(50, abs=FP64)


@pytest.mark.parametrize(
    ("bench", "rule", "sentence"),
    [
        ([], BENCHED, "none was given; run `biaswise operators bench`"),
        (BENCH[:2], BENCHED, "no time of window at r50 B2"),
        (
            [*BENCH, timed("none", "flash", 1.0, shape="vov B2")],
            BENCHED,
            "bench_shape is '', name one of them",
        ),
        (
            BENCH,
            replace(BENCHED, bench_shape="mini"),
            "has the shapes r50 B2; the rule's bench_shape is 'mini'",
        ),
    ],
)
def test_a_benchmark_that_does_not_fit_is_refused(bench, rule, sentence):
    with pytest.raises(AnalysisError, match=sentence):
        weigh(rows(), rule, bench)


def test_several_shapes_are_told_apart_by_the_rule():
    both = [
        *BENCH,
        timed("none", "flash", 1.0, shape="vov B2"),
        timed("window", "rects", 41.0, shape="vov B2"),
    ]
    (first, _) = weigh(rows(), replace(BENCHED, bench_shape="vov B2"), both).verdicts
    assert first.slowdown_percent == pytest.approx(10, abs=FP64)
