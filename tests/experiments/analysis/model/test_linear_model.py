"""Effects, interactions, aliases, scenes and censoring: against other ways to compute them, and truths."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pandas import DataFrame
from statsmodels.formula.api import ols
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.anova import anova_lm

from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.aliasing import aliases
from experiments.analysis.model.censoring import regress_stages
from experiments.analysis.model.fit import Response
from experiments.analysis.model.linear_model import fit_gain, fit_sites
from experiments.analysis.model.mean_squares import WEIGHT_OF_REST
from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.factorial import Factor, fraction, full, one_at_a_time

FP64 = 1e-9  # values are below 100 and matrices well conditioned


def table_of(design, seeds, treatments=("window",)):
    trials = [TrialRow(f"{i}-s{seed}", seed, arm) for i, arm in enumerate(design.arms) for seed in seeds]
    return DesignTable(design.sites, tuple(trials), (), treatments=treatments)


def factors(count):
    return [Factor(f"s{i}") for i in range(count)]


def noise(table, seed=0):
    return np.random.default_rng(seed).standard_normal(len(table.trials))


def test_effects_and_errors_equal_statsmodels_formula():
    table = table_of(full(factors(2)), (0, 1))
    values = 40 + noise(table)
    fit = fit_sites(Response(values), table)
    data = {"y": values, "a": table.treated[:, 0], "b": table.treated[:, 1]}
    data["seed"] = [str(trial.seed) for trial in table.trials]
    other = ols("y ~ a + b + seed", DataFrame(data)).fit()
    apart = ols("y ~ a + b + seed + seed:a + seed:b", DataFrame(data)).fit()
    assert fit.effect == pytest.approx([other.params["a"], other.params["b"]], abs=FP64)
    assert (apart.df_resid, other.df_resid, fit.residual_df) == (2, 4, 4)
    assert fit.noise == pytest.approx(math.sqrt(other.scale), abs=FP64)
    # two degrees of freedom are of seed by site; of the other two's mean square, one and a half count
    scale = (other.ssr - apart.ssr + WEIGHT_OF_REST * apart.scale) / (2 + WEIGHT_OF_REST)
    assert fit.error == pytest.approx([math.sqrt(scale * 4 / 8)] * 2, abs=FP64)
    assert fit.df.tolist() == [2 + WEIGHT_OF_REST] * 2
    expected = anova_lm(other, apart)
    squares = fit.mean_squares
    assert squares.seed_by_site_f == pytest.approx((expected["F"][1], expected["Pr(>F)"][1]), abs=FP64)
    arms = ols("y ~ a * b + seed", DataFrame(data)).fit()
    lack = anova_lm(other, arms)
    assert squares.lack_of_fit_f == pytest.approx((lack["F"][1], lack["Pr(>F)"][1]), abs=FP64)
    assert (squares.lack_of_fit_df, squares.pure_error_df) == (1, 3)


def test_several_levels_are_contrasts_with_the_baseline():
    levels = ("none", "window", "window/lowrank@16")
    table = table_of(one_at_a_time([Factor("a", levels), Factor("b", levels)]), (0, 1, 2), levels[1:])
    truth = {("a", levels[1]): 1.0, ("a", levels[2]): 2.0, ("b", levels[1]): -3.0, ("b", levels[2]): 0.5}
    values = np.array(
        [sum(truth.get(t, 0) for t in zip(table.sites, r.levels, strict=True)) for r in table.trials]
    )
    fit = fit_sites(Response(values + 1e-6 * noise(table)), table)
    assert table.terms == tuple(truth)
    assert fit.effect == pytest.approx(list(truth.values()), abs=1e-5)


def test_interactions_are_found_where_trials_suffice_and_the_gain_stays_an_average():
    table = table_of(full(factors(3)), (0, 1, 2))
    on = table.treated
    values = on @ [1.0, 2.0, 0.0] + 4.0 * on[:, 0] * on[:, 1] + 1e-6 * noise(table)
    fit = fit_sites(Response(values), table)
    assert fit.residual_df == 24 - 3 - 3 - 3
    found = {pair.pairs: pair.effect for pair in fit.interactions}
    assert found[("s0", "s1"),] == pytest.approx(4, abs=1e-5)
    assert found[("s0", "s2"),] == pytest.approx(0, abs=1e-5)
    # 1 alone, 5 beside the other: 3 on average
    assert fit.effect == pytest.approx([3, 4, 0], abs=1e-5)
    two_seeds = table_of(full(factors(3)), (0, 1))
    assert len(fit_sites(Response(noise(two_seeds)), two_seeds).interactions) == 3
    few = table_of(full(factors(3)), (0,))
    assert fit_sites(Response(noise(few)), few).interactions == ()


def test_a_fraction_lists_its_aliases_and_keeps_sites_apart_from_pairs():
    design = fraction(factors(6), 2)
    table = table_of(design, (0, 1))
    groups = aliases(table)
    assert all(":" in name for group in groups for name in group)  # resolution IV: no site is among them
    assert sum(map(len, groups)) == 15
    assert aliases(table_of(full(factors(3)), (0,))) == ()
    on = table.treated
    pair = groups[0][0].split(":")
    i, j = (design.sites.index(site) for site in pair)
    fit = fit_sites(Response(10.0 * (on[:, i] - 0.5) * (on[:, j] - 0.5) + 1e-6 * noise(table)), table)
    assert fit.effect == pytest.approx([0] * 6, abs=1e-5)
    (found,) = [pair for pair in fit.interactions if abs(pair.effect) > 1]
    assert {":".join(names) for names in found.pairs} == set(groups[0])


def test_a_collapsed_training_is_left_out_and_named_and_a_heavy_tail_is_not():
    table = table_of(full(factors(3)), (0, 1))
    values = table.treated @ [3.0, 0.0, 0.0] + noise(table, 4)
    assert fit_gain(Response(values), table).collapsed == ()
    values[5] -= 30
    fit = fit_gain(Response(values), table)
    assert fit.collapsed == (table.trials[5].name,)
    without = values.copy()
    without[5] = math.nan
    other = fit_sites(Response(without), table)
    assert fit.effect == pytest.approx(other.effect, abs=FP64)
    assert fit.num_trials == 15
    values[5] += 60  # far too good is no collapse: nobody may leave that out
    assert fit_gain(Response(values), table).collapsed == ()


def scenes_response(table, rng, scenes, scene_gain, own):
    """One value per trial and scene; the metric is their mean, draws take scenes again and again."""
    shift = scene_gain * rng.standard_normal((table.treated.shape[1], scenes))
    per_scene = table.treated @ shift + own * rng.standard_normal((len(table.trials), scenes))
    per_scene += rng.standard_normal(len(table.trials))[:, None]
    counts = rng.multinomial(scenes, [1 / scenes] * scenes, 100) / scenes
    return Response(per_scene.mean(axis=1), counts @ per_scene.T, scenes)


@pytest.mark.parametrize(("scene_gain", "own"), [(0.0, 0.0), (0.0, 4.0), (4.0, 0.0), (4.0, 4.0)])
def test_the_error_counts_runs_and_scenes_once_each(scene_gain, own):
    table, scenes, studies = table_of(full(factors(2)), (0, 1, 2)), 40, 250
    rng = np.random.default_rng(int(10 * scene_gain + own))
    fits = [fit_sites(scenes_response(table, rng, scenes, scene_gain, own), table) for _ in range(studies)]
    of_runs = (1 + own**2 / scenes) * 4 / 12
    truth = of_runs + scene_gain**2 / scenes
    mean = np.mean([fit.error**2 for fit in fits])
    # the part of the scenes cannot be negative: without any it adds up to a tenth
    assert 0.92 * truth <= mean <= 1.12 * truth
    assert np.mean([fit.effect**2 for fit in fits]) == pytest.approx(truth, rel=0.15)


def test_few_scenes_are_not_resampled():
    table = table_of(full(factors(2)), (0, 1))
    response = scenes_response(table, np.random.default_rng(0), 4, 9.0, 0.0)
    plain = fit_sites(Response(response.values), table)
    assert fit_sites(response, table).error == pytest.approx(plain.error, abs=0)


def test_stopped_trials_count_as_their_prediction():
    rng = np.random.default_rng(2)
    matrix = np.column_stack([np.ones(40), rng.integers(0, 2, 40), rng.integers(0, 2, 40)])
    early = matrix @ [1, 2, 3] + rng.standard_normal(40)
    middle = 0.5 * early + rng.standard_normal(40)
    last = middle + 0.3 * early + rng.standard_normal(40)
    middle[early < np.quantile(early, 0.2)] = math.nan
    last[np.isnan(middle) | (middle < np.nanquantile(middle, 0.2))] = math.nan
    found = regress_stages(matrix, [early, middle, last])
    filled = [early]
    for values in (middle, last):
        known = np.isfinite(values)
        wide = np.column_stack([matrix, *filled])
        guess = wide @ np.linalg.lstsq(wide[known], values[known], rcond=None)[0]
        filled.append(np.where(known, values, guess))
    assert found.effect == pytest.approx(np.linalg.lstsq(matrix, filled[-1], rcond=None)[0], abs=FP64)


def test_without_stops_the_stages_are_plain_least_squares():
    table = table_of(full(factors(2)), (0, 1, 2))
    matrix = np.hstack([table.treated, table.blocks])
    values = noise(table)
    stage = regress_stages(matrix, [values])
    plain = OLS(values, matrix).fit()
    assert stage.effect == pytest.approx(plain.params, abs=FP64)
    assert stage.covariance == pytest.approx(plain.cov_params(), abs=FP64)
    assert (stage.df, stage.noise) == (plain.df_resid, pytest.approx(math.sqrt(plain.scale), abs=FP64))


def test_stopping_the_worst_does_not_flatter_their_arms():
    """Dropping the stopped third instead would hide a part of the true loss."""
    table, studies, loss = table_of(full(factors(2)), range(6)), 200, -1.0
    rng = np.random.default_rng(0)
    effects, errors, dropped = [], [], []
    for _ in range(studies):
        early = table.treated @ [loss, 0.0] + rng.standard_normal(24)
        last = early + 0.5 * rng.standard_normal(24)
        last[np.argsort(early)[:8]] = math.nan
        fit = fit_sites(Response(last, early_values=early[None]), table)
        effects.append(fit.effect[0])
        errors.append(fit.error[0])
        dropped.append(fit_sites(Response(last), table).effect[0])
    assert np.mean(effects) == pytest.approx(loss, abs=4 * np.std(effects) / math.sqrt(studies))
    assert np.mean(np.square(errors)) == pytest.approx(np.var(effects), rel=0.3)
    assert np.mean(dropped) > 0.8 * loss


def test_a_treatment_of_which_all_trials_were_stopped_has_the_effect_of_its_early_value():
    table = table_of(full(factors(2)), range(4))
    early = table.treated @ [-9.0, 1.0] + noise(table, 5)
    last = np.where(table.treated[:, 0] == 1, math.nan, 2 * early + 0.01 * noise(table, 1))
    fit = fit_sites(Response(last, early_values=early[None]), table)
    assert fit.carried == (("s0", "window"),)
    # the noise of the others, doubled at the end, tells what a point at the early step is worth
    assert fit.effect == pytest.approx([-18, 2], abs=3 * float(fit.error[0]))
    assert fit.error[0] < 2


def test_too_few_trials_to_learn_from_are_refused():
    table = table_of(full(factors(2)), (0, 1))
    early, last = noise(table), noise(table, 1)
    last[3:] = math.nan
    with pytest.raises(AnalysisError, match="only 3 of 8 trials were trained to the end"):
        fit_sites(Response(last, early_values=early[None]), table)
    lost = replace(Response(last), values=np.full(8, math.nan))
    with pytest.raises(AnalysisError, match="0 usable trials of 8"):
        fit_sites(lost, table)
