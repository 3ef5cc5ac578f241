"""Break-even rates: Fieller's interval by hand, its unbounded cases, how often it holds."""

import math

import numpy as np
import pytest

from experiments.analysis.decision.break_even import Estimate, break_even

MANY = 1e6  # degrees of freedom


def rate(gain, gain_error, slowdown, slowdown_error):
    return break_even(Estimate(gain, gain_error, MANY), Estimate(slowdown, slowdown_error, MANY), 0.95)


def test_without_noise_in_time_the_interval_is_the_gains_by_the_slowdown():
    found = rate(1.0, 0.1, 4.0, 0.0)
    assert (found.rate, found.low, found.high) == pytest.approx((0.25, 0.804 / 4, 1.196 / 4), abs=1e-4)


def test_bounds_are_where_the_net_gain_is_just_not_told_from_zero():
    found = rate(1.0, 0.2, 4.0, 0.5)
    for bound in (found.low, found.high):
        net, error = 1.0 - bound * 4.0, math.hypot(0.2, bound * 0.5)
        assert abs(net) == pytest.approx(1.95996 * error, rel=1e-3)
    assert found.low < found.rate < found.high


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [
        ((1.0, 0.1, 0.1, 1.0), (10.0, None, math.inf)),  # may slow nothing down: no upper bound
        ((1.0, 0.1, -3.0, 0.1), (math.inf, math.inf, math.inf)),  # speeds up: pays at any price
        ((0.1, 1.0, 4.0, 0.1), (0.025, 0.0, None)),  # may gain nothing
        ((-1.0, 0.1, 4.0, 0.1), (0.0, 0.0, 0.0)),  # certainly loses
        ((1.0, 0.1, 0.0, 0.0), (math.inf, math.inf, math.inf)),  # free of charge, known exactly
        ((0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, math.inf)),
    ],
)
def test_unbounded_cases(estimates, expected):
    found = rate(*estimates)
    for value, wanted in zip((found.rate, found.low, found.high), expected, strict=True):
        assert wanted is None or value == pytest.approx(wanted, nan_ok=True)
    assert found.low <= found.high


def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = rate(rng.normal(1.0, 0.3), 0.3, rng.normal(2.0, 0.5), 0.5)
        held += found.low <= 0.5 <= found.high
    assert 0.935 < held / 2000 < 0.965
