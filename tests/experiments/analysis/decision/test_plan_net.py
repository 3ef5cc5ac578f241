"""Whole plans: their net gain by hand, and how often a settled plan is worse than no bias."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from experiments.analysis.decision.plan_net import joint_plan_quantile, no_bias_wins, predict_plans
from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.fit import Fit
from experiments.analysis.price_model import Price
from experiments.recipes.factorial import Factor, full
from tests.experiments.planted_rows import window_rule

SITES = ("a", "b", "c")
RULE = window_rule(sites=SITES)
ARMS = full([Factor(site) for site in SITES]).arms
TABLE = DesignTable(SITES, tuple(TrialRow(str(i), 0, arm) for i, arm in enumerate(ARMS)), ())
TERMS = tuple((site, "window") for site in SITES)


def fit_of(effects, error, df=11.0):
    same = np.full(3, float(error))
    return Fit(np.array(effects, dtype=float), same, np.full(3, df), int(df), 1.0, 16, np.zeros(3))


def price_of(fixed, own, error, df=20.0):
    """A price whose fixed part and own parts are correlated as in a 2^3 design."""
    columns = np.array([[float(any(arm)), *arm] for arm in product((0, 1), repeat=3)])
    centred = columns - columns.mean(axis=0)
    covariance = error**2 * np.linalg.inv(centred.T @ centred)
    return Price(TERMS, np.array([fixed, *own], dtype=float), covariance, df)


def test_a_plan_by_hand():
    price = price_of(0.10, (0.01, 0.02, 0.03), 0.01)
    nets = predict_plans(ARMS, TABLE, fit_of((1.0, 2.0, 4.0), 0.3), price, RULE)
    at = nets.levels.index(("window", "none", "window"))
    growth = np.exp(0.10 + 0.01 + 0.03)
    assert nets.gain[at] == pytest.approx(5.0)
    assert nets.net[at] == pytest.approx(5.0 - 10 * (growth - 1))
    column = np.array([1, 1, 0, 1])
    slow = 10 * growth * np.sqrt(column @ price.covariance @ column)
    assert nets.error[at] == pytest.approx(np.hypot(0.3 * np.sqrt(2), slow))
    np.testing.assert_allclose(np.linalg.norm(nets.gradient, axis=1), nets.error, atol=1e-12)
    none = nets.levels.index(("none",) * 3)
    assert (nets.net[none], nets.error[none], nets.biased[none]) == (0, 0, False)


def test_degrees_of_freedom_are_between_those_of_both_parts():
    nets = predict_plans(ARMS, TABLE, fit_of((1.0, 2.0, 4.0), 0.3), price_of(0.1, (0.0,) * 3, 0.02), RULE)
    assert (nets.df[nets.biased] > 11).all()
    assert (nets.df[nets.biased] < 31).all()


def test_the_joint_quantile_is_between_one_plans_and_bonferronis():
    nets = predict_plans(ARMS, TABLE, fit_of((0.0,) * 3, 0.3), price_of(0.1, (0.0,) * 3, 0.02), RULE)
    df = nets.df[nets.biased].min()
    found = joint_plan_quantile(nets, TABLE, RULE)
    assert student.isf(0.025, df) < found < student.isf(0.025 / 7, df)


@pytest.mark.parametrize("fixed_percent", [0, 5, 10, 25])
def test_a_settled_plan_is_hardly_ever_worse_than_no_bias(fixed_percent):
    """The worst case: the best plan is truly worth just nothing, the fixed price included."""
    studies, wrong, claimed = 600, 0, 0
    fixed = np.log1p(fixed_percent / 100)
    gains = np.array([10 * np.expm1(fixed), 0.0, 0.0])
    rng = np.random.default_rng(fixed_percent)
    root = np.linalg.cholesky(price_of(fixed, (0.0,) * 3, 0.02).covariance)
    for _ in range(studies):
        price = price_of(fixed, (0.0,) * 3, 0.02 * np.sqrt(rng.chisquare(20) / 20))
        drawn = np.array([fixed, 0, 0, 0]) + root @ rng.standard_normal(4)
        price = Price(TERMS, drawn, price.covariance, price.df)
        fit = fit_of(gains + 0.3 * rng.standard_normal(3), 0.3 * np.sqrt(rng.chisquare(11) / 11))
        nets = predict_plans(ARMS, TABLE, fit, price, RULE)
        low = nets.net - joint_plan_quantile(nets, TABLE, RULE) * nets.error
        wrong += bool((low[nets.biased] > 0).any())
        claimed += no_bias_wins(nets, TABLE, RULE)
    assert wrong <= binom.ppf(0.999, studies, 0.025)
    assert claimed <= binom.ppf(0.999, studies, 0.025)


def test_no_bias_wins_if_every_plan_certainly_loses():
    dear = predict_plans(ARMS, TABLE, fit_of((1.4, 0.2, 0.1), 0.1), price_of(0.3, (0.0,) * 3, 0.02), RULE)
    assert no_bias_wins(dear, TABLE, RULE)
    cheap = predict_plans(ARMS, TABLE, fit_of((1.4, 0.2, 0.1), 0.1), price_of(0.1, (0.0,) * 3, 0.02), RULE)
    assert not no_bias_wins(cheap, TABLE, RULE)
