"""Collapses: two that hide each other, one that was stopped, and what is no collapse."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS

from experiments.analysis.model.fit import Response
from experiments.analysis.model.linear_model import fit_gain
from experiments.analysis.model.outliers import COLLAPSED, find_collapsed, least_absolute_residuals
from tests.experiments.analysis.model.studies import COLLAPSE, TABLES

TABLE = TABLES["3x2"]
MODEL = np.hstack([TABLE.treated, TABLE.blocks])


def noise(seed):
    return np.random.default_rng(seed).standard_normal(len(MODEL))


@pytest.mark.parametrize("fallen", [[3], [0, 15], [2, 3], [1, 4, 10], [0, 5, 11, 14]])
def test_all_collapsed_trials_are_found_and_no_other(fallen):
    values = noise(1) + MODEL @ [3.0, 0.0, -1.0, 10.0, 20.0]
    assert find_collapsed(values, MODEL) == []
    values[fallen] -= COLLAPSE
    assert sorted(find_collapsed(values, MODEL)) == fallen


def test_the_chance_is_that_of_students_residual_without_the_other_suspects():
    """The first trial that is too low is so by the studentised residual of statsmodels."""
    values = noise(2)
    residual = OLS(values, MODEL).fit().get_influence()
    fall = 0.0
    while not find_collapsed(values, MODEL):
        fall += 0.05
        values[7] -= 0.05
        residual = OLS(values, MODEL).fit().get_influence().resid_studentized_external[7]
    # one step of 0.05 beyond the quantile at most
    assert student.ppf(COLLAPSED / 16, 10) - 0.1 < residual < student.ppf(COLLAPSED / 16, 10)


def test_least_absolute_deviations_equal_linear_programming():
    values = noise(3)
    values[[2, 9]] -= COLLAPSE
    found = np.abs(least_absolute_residuals(values, MODEL)).sum()
    rows, columns = MODEL.shape
    cost = np.r_[np.zeros(columns), np.ones(2 * rows)]
    equal = np.hstack([MODEL, np.eye(rows), -np.eye(rows)])
    best = linprog(cost, A_eq=equal, b_eq=values, bounds=[(None, None)] * columns + [(0, None)] * 2 * rows)
    assert best.fun <= found + 1e-9
    assert found == pytest.approx(best.fun, rel=0.01)


def test_a_collapse_that_was_stopped_is_found_where_it_stopped():
    """Finding 5: its early value alone would swamp the study."""
    values = TABLE.treated @ [2.0, 0.0, 0.0] + noise(4)
    early = values + 0.5 * noise(5)
    early[6] -= COLLAPSE
    values[6] = math.nan
    fit = fit_gain(Response(values, early_values=early[None]), TABLE)
    assert fit.collapsed == (TABLE.trials[6].name,)
    assert fit.error.max() < 1.0
    assert fit.num_trials == len(TABLE.trials) - 1


def test_without_noise_and_with_trials_that_nobody_predicts_nothing_collapsed():
    assert find_collapsed(MODEL @ np.arange(5.0), MODEL) == []
    assert find_collapsed(np.full(len(MODEL), math.nan), MODEL) == []
    alone = np.eye(4)
    assert find_collapsed(np.array([0.0, 0.0, 0.0, -99.0]), alone) == []
