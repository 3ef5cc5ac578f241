"""Sums of coefficients, errors of unbalanced arms and the interactions' gate, against other ways."""

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind
from statsmodels.regression.linear_model import OLS

from experiments.analysis.model.fit import Fit, Response, contrast
from experiments.analysis.model.interaction_gate import pairs_join
from experiments.analysis.model.linear_model import fit_sites
from experiments.analysis.model.robust_errors import robust_covariance, unbalanced
from experiments.recipes.factorial import Factor, full
from tests.experiments.analysis.model.studies import TABLES, table_of

FP64 = 1e-9


def scored(table, seed=0, scenes=40):
    """A response with draws: gains differ from scene to scene."""
    rng = np.random.default_rng(seed)
    shift = 4 * rng.standard_normal((len(table.terms), scenes))
    per_scene = table.treated @ shift + rng.standard_normal((len(table.trials), scenes))
    counts = rng.multinomial(scenes, [1 / scenes] * scenes, 100) / scenes
    return Response(per_scene.mean(axis=1), counts @ per_scene.T, scenes)


def test_a_plans_gain_is_the_difference_of_its_fitted_values():
    table = TABLES["3x2"]
    values = table.treated @ [2.0, 1.0, -1.0] + 4 * table.treated[:, 0] * table.treated[:, 2]
    values += np.random.default_rng(0).standard_normal(len(values))
    fit = fit_sites(Response(values), table)
    halves = table.treated - 0.5
    pairs = [(0, 1), (0, 2), (1, 2)]
    model = np.column_stack([halves, *(halves[:, i] * halves[:, j] for i, j in pairs), table.blocks])
    other = OLS(values, model).fit()
    # layers 0 and 2 against none: 0.5 - -0.5 per layer; products 1/4 - 1/4 for the pair, -1/4 - 1/4 else
    weights = np.array([1.0, 0.0, 1.0, -0.5, 0.0, -0.5])
    found = contrast(fit, weights[:3], weights[3:])
    test = other.t_test(np.r_[weights, 0, 0])
    assert found.value == pytest.approx(float(test.effect[0]), abs=FP64)
    scale, df = fit.mean_squares.of_sites
    assert found.error == pytest.approx(float(test.sd[0, 0]) * np.sqrt(scale / other.scale), abs=FP64)
    assert found.df == df


@pytest.mark.parametrize("name", TABLES)
def test_one_effect_is_a_sum_of_itself(name):
    fit = fit_sites(scored(TABLES[name]), TABLES[name])
    for index, weights in enumerate(np.eye(len(fit.effect))):
        one = contrast(fit, weights)
        assert (one.value, one.error, one.df) == pytest.approx(
            (fit.effect[index], fit.error[index], fit.df[index]), abs=FP64
        )
    assert np.diag(fit.covariance) == pytest.approx(fit.error**2, abs=FP64)
    assert fit.runs + fit.scenes == pytest.approx(fit.error**2, abs=FP64)
    assert (fit.scenes > 0).all()


def test_an_error_without_its_parts_is_independent():
    zeros = np.zeros(2)
    fit = Fit(zeros + 1, np.array([3.0, 4.0]), zeros + 9, 9, 1.0, 16, zeros)
    assert contrast(fit, [1, 1]).error == pytest.approx(5)
    assert fit.covariance.tolist() == [[9, 0], [0, 16]]


def test_two_arms_have_welchs_test():
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal(4), 3 * rng.standard_normal(6)
    matrix = np.column_stack([np.r_[np.zeros(4), np.ones(6)], np.ones(10)])
    covariance, df = robust_covariance(matrix, np.r_[one, other])
    welch = ttest_ind(other, one, equal_var=False)
    assert (other.mean() - one.mean()) / np.sqrt(covariance[0, 0]) == pytest.approx(welch.statistic, abs=FP64)
    # Bell and McCaffrey's degrees of freedom are those of Welch where both arms are equally noisy
    n, m = 4, 6
    assert df[0] == pytest.approx((1 / n + 1 / m) ** 2 / (1 / n**2 / (n - 1) + 1 / m**2 / (m - 1)), abs=FP64)


def test_errors_by_arm_are_those_of_statsmodels():
    table = TABLES["one at a time"]
    matrix = np.hstack([table.treated, table.blocks])
    values = np.random.default_rng(2).standard_normal(len(matrix))
    covariance, _ = robust_covariance(matrix, values)
    assert covariance == pytest.approx(OLS(values, matrix).fit(cov_type="HC2").cov_params(), abs=FP64)
    assert fit_sites(Response(values), table).error == pytest.approx(
        np.sqrt(np.diag(covariance))[: len(table.terms)], abs=FP64
    )
    alone = np.column_stack([np.eye(9)[:, 0], np.ones(9)])
    assert robust_covariance(alone, values[:9]) is None


def test_only_one_at_a_time_is_unbalanced():
    assert {name: unbalanced(table) for name, table in TABLES.items()} == {
        **dict.fromkeys(TABLES, False),
        "one at a time": True,
    }


def test_the_gate_weighs_degrees_of_freedom_against_usual_pairs():
    # 16 trials, one seed, seven pairs: 9 degrees of freedom or 2
    usual = student.ppf(0.975, 9) * np.sqrt(1 + 7 * 16 / 16 / 9)
    assert pairs_join(16, 7, 0, 2) == bool(student.ppf(0.975, 2) <= usual)
    assert not pairs_join(16, 7, 0, 2)
    assert not pairs_join(8, 3, 0, 1)  # three layers, one seed
    assert pairs_join(16, 3, 3, 5)  # the demo: three layers, two seeds
    assert pairs_join(32, 7, 6, 11)  # six layers, two seeds
    assert pairs_join(64, 15, 0, 42)
    assert not pairs_join(7, 3, 0, 0)
    assert not pairs_join(6, 3, 0, -1)


def test_a_study_has_the_degrees_of_freedom_of_its_design():
    """With two seeds a layer has one contrast of seed by site; three layers have three."""
    table = TABLES["3x2"]
    squares = fit_sites(scored(table), table).mean_squares
    assert (squares.seed_by_site_df, squares.rest_df, squares.of_sites[1]) == (3, 5, 4.5)
    # arms beyond sites and pairs: the product of all three
    assert (squares.lack_of_fit_df, squares.pure_error_df) == (1, 7)
    table = table_of(full([Factor(f"s{i}") for i in range(3)]), range(1))
    squares = fit_sites(scored(table), table).mean_squares
    assert (squares.seed_by_site_df, squares.of_sites) == (0, (squares.pooled, 4.0))
    assert np.isnan(squares.seed_by_site)
    assert all(np.isnan(squares.seed_by_site_f))
