"""Spending: published boundaries, what is spent in all, and a walk that is stopped at them."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from experiments.analysis.alpha_spending import nominal_level, spent

FIVE = (1, 2, 3, 4, 5)
PUBLISHED = {
    # Reboussin, DeMets, Kim and Lan, Controlled Clinical Trials 21 (2000): five looks, two-sided 5 per cent
    "obrien_fleming": (4.877, 3.357, 2.680, 2.290, 2.031),
    "pocock": (2.438, 2.427, 2.410, 2.397, 2.386),
}


@pytest.mark.parametrize("spending", PUBLISHED)
def test_published_boundaries(spending):
    bounds = [norm.isf(nominal_level(0.05, FIVE, look, spending) / 2) for look in FIVE]
    assert bounds == pytest.approx(PUBLISHED[spending], abs=6e-4)  # they have three decimals


def test_one_look_has_the_whole_level():
    assert nominal_level(0.05, (3,), 1, "pocock") == pytest.approx(0.05, abs=1e-12)
    assert spent(0.05, 1.0, "obrien_fleming") == 0.05


@pytest.mark.parametrize("spending", PUBLISHED)
def test_a_walk_without_drift_crosses_as_often_as_promised(spending):
    walks, looks = 40_000, (1, 2, 4)
    steps = np.random.default_rng(0).standard_normal((walks, 4)).cumsum(axis=1)
    crossed = np.zeros(walks, dtype=bool)
    for index, seeds in enumerate(looks, 1):
        z = steps[:, seeds - 1] / np.sqrt(seeds)
        crossed |= 2 * norm.sf(abs(z)) < nominal_level(0.05, looks, index, spending)
    assert binom.ppf(0.001, walks, 0.05) <= crossed.sum() <= binom.ppf(0.999, walks, 0.05)
