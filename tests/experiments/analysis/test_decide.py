"""Verdicts from tables whose answer is known by hand, from laws, and from planted truths."""

import math
import random
from dataclasses import replace

import pytest
from scipy.stats import binom
from scipy.stats import t as student

from experiments.analysis.decide import decide, weigh
from experiments.analysis.verdicts import COSTS, PAYS, UNDECIDED
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from pipeline.metrics.rows import Row, select
from tests.experiments.planted_rows import Truth, plant, window_rule

SITES = tuple(f"decoder.{layer}.cross" for layer in range(3))
ONE_SITE = {"decoder.0.cross": 0.0}
BY_TRIALS = window_rule(priced_by="trials")
FP64 = 1e-9  # points; values are below 100, so fp64 rounding of a 16-row fit stays far under it


def free_rule(**changes):
    return replace(window_rule(price_points_per_percent=0.0), **changes)


def by_hand(differences):
    """One site: NDS 40 and 41 points at baseline, higher by the given differences with the window."""
    rows = plant(Truth(ONE_SITE, seeds=tuple(range(len(differences))), noise=0, seed_noise=0))
    points = {f"w{on}-s{seed}": 40 + seed + on * d for seed, d in enumerate(differences) for on in (0, 1)}
    return [replace(row, value=points[row.trial] / 100) if row.metric == "NDS" else row for row in rows]


def test_one_site_and_two_seeds_as_on_paper():
    # Paired differences 3 and 5: mean 4, standard error sqrt(2) / sqrt(2) = 1, one degree of freedom.
    (verdict,) = decide(by_hand([3, 5]), free_rule())
    wide = student.ppf(0.975, 1)
    assert verdict.effect == pytest.approx(4, abs=FP64)
    assert verdict.low == pytest.approx(4 - wide, abs=FP64)
    assert verdict.high == pytest.approx(4 + wide, abs=FP64)
    assert verdict.verdict == UNDECIDED


def test_effects_equal_the_contrasts_of_a_balanced_factorial():
    rows = plant(Truth(dict.fromkeys(SITES, 1.0)), draw=3)
    for index, verdict in enumerate(decide(rows, BY_TRIALS)):
        groups = {"0": [], "1": []}
        for row in select(rows, metric="NDS"):
            groups[row.trial[1 + index]].append(100 * row.value)
        contrast = sum(groups["1"]) / 8 - sum(groups["0"]) / 8
        assert verdict.effect == pytest.approx(contrast, abs=FP64)


def test_planted_gain_pays_planted_loss_costs_and_nothing_is_undecided():
    truth = Truth(dict(zip(SITES, (6.0, 0.0, -6.0), strict=True)))
    verdicts = {v.site: v for v in decide(plant(truth, draw=1), BY_TRIALS)}
    assert [verdicts[site].verdict for site in SITES] == [PAYS, UNDECIDED, COSTS]
    assert verdicts[SITES[0]].to_settle is None
    assert verdicts[SITES[1]].to_settle.seeds > 0


def test_a_gain_below_its_price_costs():
    truth = Truth({SITES[0]: 1.0, SITES[1]: 1.0}, {SITES[0]: 30.0}, noise=0.05, time_noise_percent=0.1)
    slow, fast = decide(plant(truth), BY_TRIALS)
    assert slow.low > 0
    assert (slow.verdict, fast.verdict) == (COSTS, PAYS)
    assert slow.price == pytest.approx(0.1 * slow.slowdown_percent, abs=FP64)


def test_without_noise_in_time_the_price_is_exact():
    truth = Truth(
        dict.fromkeys(SITES, 0.0), dict(zip(SITES, (0.0, 2.0, 5.0), strict=True)), time_noise_percent=0
    )
    for verdict, percent in zip(decide(plant(truth), BY_TRIALS), (0, 2, 5), strict=True):
        assert verdict.slowdown_percent == pytest.approx(percent, abs=FP64)
        # Holm's step is at least Bonferroni's, which the interval of the gain has
        assert verdict.net_low >= verdict.low - verdict.price - FP64
    (alone,) = decide(plant(Truth(ONE_SITE, {SITES[0]: 2.0}, time_noise_percent=0)), BY_TRIALS)
    assert alone.net_low == pytest.approx(alone.low - alone.price, abs=FP64)


def test_noise_in_time_widens_the_decision_and_never_narrows_it():
    sites = dict.fromkeys(SITES, 0.0)
    for verdict in decide(plant(Truth(sites, time_noise_percent=10)), BY_TRIALS):
        assert verdict.net_low < verdict.low - verdict.price
        assert verdict.net_high > verdict.high - verdict.price


def test_order_of_rows_and_the_level_of_a_seed_do_not_matter():
    rows = plant(Truth(dict.fromkeys(SITES, 1.0)))
    expected = decide(rows, BY_TRIALS)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert decide(shuffled, BY_TRIALS) == expected
    lifted = [replace(r, value=r.value + 0.1) if (r.metric, r.seed) == ("NDS", 1) else r for r in rows]
    for one, other in zip(decide(lifted, BY_TRIALS), expected, strict=True):
        assert one.low == pytest.approx(other.low, abs=FP64)


def test_effects_per_condition():
    conditions = {"clean": (1.0, 1.0), "no_lidar": (0.5, -1.0)}
    truth = Truth({SITES[0]: 6.0}, seeds=tuple(range(4)), conditions=conditions)
    found = {effect.condition: effect for effect in weigh(plant(truth), BY_TRIALS).effects}
    assert found["clean"].low > 0
    assert found["no_lidar"].high < 0


def test_rows_written_again_by_a_resumed_trial_count_once():
    rows = plant(Truth(ONE_SITE))
    again = [replace(row, time=row.time + 1) for row in rows if row.trial == "w1-s1"]
    assert decide(rows + again, BY_TRIALS) == decide(rows, BY_TRIALS)


def test_the_last_step_of_a_trial_counts():
    rows = plant(Truth(ONE_SITE))
    early = [replace(row, step=row.step - 1, value=0.0) for row in select(rows, metric="NDS")]
    assert decide(early + rows, BY_TRIALS) == decide(rows, BY_TRIALS)


def test_a_diverged_trial_is_named_and_the_rest_is_judged():
    truth = Truth(dict(zip(SITES, (6.0, 0.0, 0.0), strict=True)))
    rows = [
        replace(r, value=math.nan) if (r.trial, r.metric) == ("w101-s0", "NDS") else r for r in plant(truth)
    ]
    evidence = weigh(rows, BY_TRIALS)
    assert evidence.table.diverged == ("w101-s0",)
    assert "w101-s0" in evidence.notes[0]
    assert evidence.verdicts[0].verdict == PAYS
    assert evidence.residual_df == 7  # 15 trials, 3 sites, 3 pairs, 2 seeds


def test_a_trial_that_diverged_before_its_evaluation_is_named():
    rows = plant(Truth(dict.fromkeys(SITES, 0.0)))
    sample = next(select(rows, trial="w010-s1"))
    rest = [row for row in rows if not (row.trial == "w010-s1" and row.metric == "NDS")]
    lost = [*rest, replace(sample, metric="loss", unit="nats", condition="", value=math.nan)]
    assert weigh(lost, BY_TRIALS).table.diverged == ("w010-s1",)


def test_a_trial_that_diverged_after_a_rung_is_named():
    rows = plant(Truth(dict.fromkeys(SITES, 0.0)))
    sample = next(select(rows, trial="w010-s1", metric="NDS"))
    rest = [row for row in rows if not (row.trial == "w010-s1" and row.metric == "NDS")]
    early = replace(sample, step=sample.step - 2)
    lost = replace(sample, step=sample.step - 1, metric="loss", unit="nats", condition="", value=math.nan)
    assert weigh([*rest, early, lost], BY_TRIALS).table.diverged == ("w010-s1",)


def test_a_condition_that_is_incomplete_is_noted_and_not_estimated():
    truth = Truth(ONE_SITE, conditions={"clean": (1.0, 1.0), "no_lidar": (0.5, 1.0)})
    rows = [r for r in plant(truth) if (r.trial, r.condition) != ("w1-s0", "no_lidar")]
    evidence = weigh(rows, BY_TRIALS)
    assert {effect.condition for effect in evidence.effects} == {"clean"}
    assert "no_lidar" in evidence.notes[0]


def edit(rows, trial, **changes):
    return [replace(row, **changes) if row.trial == trial else row for row in rows]


def only_nds(rows, trial, **changes):
    return [replace(r, **changes) if (r.trial, r.metric) == (trial, "NDS") else r for r in rows]


REFUSED = {
    "no rows": (lambda rows: [], "no rows"),
    "missing arms": (lambda rows: [r for r in rows if r.trial[2] == "0"], "4 of 8 trials"),
    "missing seed": (lambda rows: [r for r in rows if r.seed == 0], "none everywhere, seed 1"),
    "trials without the metric": (
        lambda rows: [r for r in rows if (r.trial[:3], r.metric) not in {("w11", "NDS"), ("w01", "NDS")}],
        "decoder.0.cross + decoder.1.cross, seed 0",
    ),
    "two values": (
        lambda rows: rows + [replace(r, value=0.9) for r in rows if (r.trial, r.metric) == ("w00-s0", "NDS")],
        "w00-s0 has two values of NDS",
    ),
    "mixed commits": (lambda rows: edit(rows, "w00-s0", commit="abc"), "differ in commit"),
    "mixed recipes": (lambda rows: edit(rows, "w00-s0", recipe_digest="abc"), "differ in recipe_digest"),
    "mixed devices": (lambda rows: edit(rows, "w00-s0", device="H200"), "differ in device"),
    "unequal steps": (lambda rows: only_nds(rows, "w00-s0", step=50), "50, 100 steps"),
    "wrong unit": (lambda rows: only_nds(rows, "w00-s0", unit="ms"), "unit fraction"),
    "all diverged": (lambda rows: [replace(r, value=math.nan) for r in rows], "no trial has a finite NDS"),
    "no price": (lambda rows: [r for r in rows if r.metric != "step_ms"], "step_ms is missing"),
    "twins": (
        lambda rows: rows + [replace(r, trial="twin") for r in rows if r.trial == "w00-s0"],
        "the same arm and seed",
    ),
    "two plans": (
        lambda rows: only_nds(rows, "w00-s0", plan=rows[-1].plan),
        "trial w00-s0 name several plans",
    ),
    "other bias": (
        lambda rows: edit(rows, "w10-s0", plan=rows[-1].plan.replace("window", "global", 1)),
        "global/sdpa_math",
    ),
    "two implementations": (
        lambda rows: edit(rows, "w11-s0", plan=rows[-1].plan.replace("window/sdpa_math", "window/flex", 1)),
        "each with one implementation",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    spoil, sentence = REFUSED[name]
    rows = spoil(plant(Truth(dict.fromkeys(SITES[:2], 0.0))))
    with pytest.raises(AnalysisError, match=sentence.replace("+", r"\+")) as caught:
        decide(rows, replace(BY_TRIALS, sites=SITES[:2], seeds=(0, 1)))
    assert "\n" not in str(caught.value)


MISSING = {
    "one trial": (lambda row: row.trial == "w11-s1", 1),
    "one trial's metric": (lambda row: (row.trial, row.metric) == ("w11-s1", "NDS"), 1),
    "a whole arm": (lambda row: row.trial.startswith("w01-"), 2),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_trials_cost_their_cells_and_are_said(name):
    is_missing, count = MISSING[name]
    rows = plant(Truth(dict.fromkeys(SITES[:2], 9.0)))
    evidence = weigh([r for r in rows if not is_missing(r)], free_rule(sites=SITES[:2], seeds=(0, 1)))
    assert len(evidence.table.trials) == 8 - count
    assert any(note.startswith(f"{count} of 8 trials are missing: window at") for note in evidence.notes)
    assert {verdict.verdict for verdict in evidence.verdicts} == {PAYS}


def test_missing_trials_of_two_looks_are_counted_look_by_look():
    rows = plant(Truth(dict.fromkeys(SITES, 1.0)))
    rule = free_rule(sites=SITES, seeds=(0, 1), interim_analyses=(1, 2))
    begun = [r for r in rows if r.seed == 0 or r.trial in ("w000-s1", "w111-s1")]
    assert weigh(begun, rule).table.look == 1
    nearly = [r for r in rows if r.trial not in ("w000-s1", "w111-s0")]
    table = weigh(nearly, rule).table
    assert (table.look, len(table.trials), len(table.missing)) == (2, 14, 2)
    with pytest.raises(AnalysisError, match="3 of 8 trials lack NDS"):
        weigh([r for r in rows if r.trial not in ("w000-s0", "w111-s0", "w110-s0")], rule)


def test_unknown_metric_lists_what_was_measured():
    with pytest.raises(AnalysisError, match=r"no row measures F1 .* measured were NDS \(clean\)"):
        decide(plant(Truth(ONE_SITE)), window_rule(metric="F1"))


def test_one_seed_of_one_site_leaves_no_noise_to_judge_by():
    with pytest.raises(AnalysisError, match="add a seed"):
        decide(plant(Truth(ONE_SITE, seeds=(0,))), BY_TRIALS)


def test_a_site_that_varies_unasked_is_refused():
    with pytest.raises(AnalysisError, match=r"decoder.1.cross varies .* does not ask"):
        decide(plant(Truth(dict.fromkeys(SITES[:2], 0.0))), window_rule(sites=SITES[:1]))


def test_nothing_varies():
    rows = [row for row in plant(Truth(ONE_SITE)) if row.trial.startswith("w0")]
    with pytest.raises(AnalysisError, match="no site's bias differs"):
        decide(rows, BY_TRIALS)


def test_where_nothing_is_planted_false_verdicts_are_as_rare_as_promised():
    """Any false verdict in at most 5 % of studies; a true 5 % gives more than allowed once in a thousand."""
    studies = 300
    null = Truth(dict.fromkeys(SITES, 0.0), time_noise_percent=5)
    wrong = sum(
        any(v.verdict in (PAYS, COSTS) for v in decide(plant(null, d), BY_TRIALS)) for d in range(studies)
    )
    assert wrong <= binom.ppf(0.999, studies, 0.05)
    assert wrong > 0  # intervals that never miss would be too wide to find anything


def test_intervals_cover_the_planted_truth_together():
    studies = 300
    truth = Truth(dict(zip(SITES, (1.0, 0.0, -2.0), strict=True)))
    covered = sum(
        all(v.low <= truth.gain[v.site] <= v.high for v in decide(plant(truth, draw), BY_TRIALS))
        for draw in range(studies)
    )
    assert covered >= binom.ppf(0.001, studies, 0.95)
    assert covered <= binom.ppf(0.999, studies, 0.97)  # Bonferroni may overshoot its 95 %, by little


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"treatments": ("magic",)}, "expected one of none, global"),
        ({"treatments": ("none",)}, "with itself"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"price_points_per_percent": -1.0}, "0 or more"),
    ],
)
def test_rules_that_decide_nothing_are_refused(changes, sentence):
    with pytest.raises(AnalysisError, match=sentence):
        window_rule(**changes)


def test_a_rule_survives_json_and_its_digest_names_it():
    rule = window_rule(sites=SITES, seeds=(0, 1))
    assert DecisionRule.from_dict(rule.to_dict()) == rule
    assert DecisionRule.from_dict(rule.to_dict()).digest == rule.digest
    assert replace(rule, confidence=0.9).digest != rule.digest
    with pytest.raises(AnalysisError, match="no speed"):
        DecisionRule.from_dict({"speed": 1})


def test_rows_of_single_scenes_are_not_mistaken_for_the_whole():
    rows = plant(Truth(ONE_SITE))
    scene: list[Row] = [replace(row, scene="scene-0003", value=0.0) for row in select(rows, metric="NDS")]
    assert decide(rows + scene, BY_TRIALS) == decide(rows, BY_TRIALS)
