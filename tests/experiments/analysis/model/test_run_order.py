"""Drift and unlike places: told from the layers where the order allows, and no false verdict for them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import f as f_distribution

from experiments.analysis.decide import weigh
from experiments.analysis.design_table import tabulate
from experiments.analysis.model.run_order import DRIFT, PLACE, order_columns, run_order
from pipeline.metrics.rows import select
from tests.experiments.planted_rows import Truth, plant, window_rule

SITES = tuple(f"decoder.{i}.cross" for i in range(3))
RULE = window_rule(sites=SITES, seeds=(0, 1), priced_by="trials")
# Every layer earns its price: 2 % of a step cost 0.2 points, so the net gain is 0.
NOTHING = Truth(
    dict.fromkeys(SITES, 0.2), dict.fromkeys(SITES, 2.0), seeds=(0, 1), noise=0.3, time_noise_percent=0.5
)
SECONDS = 600.0
STUDIES = 200


def standard(names, rng):
    """The order of the recipe: seed after seed, the arms as the design lists them."""
    return sorted(names, key=lambda name: (name[-1], name))


def shuffled(names, rng):
    """Seed after seed, the arms at random: what `trial_order` does by a digest."""
    return sorted(names, key=lambda name: (name[-1], rng.random()))


def ran(rows, order, slots=1, drift=0.0, slow=0.0, drift_points=0.0):
    """Add start times and slots, and let times grow by `drift` over the study and by `slow` in slot 1."""
    place = {name: index for index, name in enumerate(order)}
    last = len(order) - 1
    made = []
    for row in rows:
        at = place[row.trial]
        if row.metric == "step_ms":
            row = replace(row, value=row.value * np.exp(drift * at / last + slow * (at % slots)))
            label = replace(row, unit="label", step=0)
            made += [
                replace(label, metric="start_time", unit="s", value=1e9 + SECONDS * (at // slots)),
                replace(label, metric="slot", value=float(at % slots)),
                replace(label, metric="host", value=7.0),
            ]
        elif row.metric == "NDS":
            row = replace(row, value=row.value + drift_points / 100 * at / last)
        made.append(row)
    return made


def planted(draw, order=shuffled, truth=NOTHING, **change):
    rows = plant(truth, draw=draw)
    rng = np.random.default_rng([draw, 1])
    return ran(rows, order(sorted({row.trial for row in rows}), rng), **change)


def share_of_false_costs(studies=STUDIES, **change):
    studies_with = [
        any(verdict.verdict == "COSTS" for verdict in weigh(planted(draw, **change), RULE).verdicts)
        for draw in range(studies)
    ]
    return np.mean(studies_with)


DRIFTING = {"drift": 0.10}
ALTERNATING = {"slots": 2, "slow": 0.15}


@pytest.mark.parametrize("fault", [DRIFTING, ALTERNATING], ids=["drift", "slow place"])
def test_a_drift_or_a_slow_place_makes_no_layer_cost_in_random_order(fault):
    assert share_of_false_costs(**fault) <= 0.07


@pytest.mark.parametrize(
    ("fault", "least", "what"),
    [
        (DRIFTING, 0.15, "a linear drift over the start times"),
        (ALTERNATING, 0.95, "a block for each of 2 places"),
    ],
    ids=["drift", "slow place"],
)
def test_in_standard_order_they_do_and_no_block_could_tell(fault, least, what):
    """The counterexample that the random order is for: the columns of the layers decide the fault's."""
    assert share_of_false_costs(60, order=standard, **fault) >= least
    notes = " ".join(weigh(planted(0, standard, **fault), RULE).notes)
    assert f"fitted without {what}: the order in which the trials ran does not tell it" in notes


def test_the_blocks_take_the_fault_out_of_the_intervals():
    """In random order the verdicts hold without blocks, too, but a 15 % slower place would be noise."""
    widths = {}
    for known in (True, False):
        studies = [
            [r for r in planted(draw, **ALTERNATING) if known or r.metric != "start_time"]
            for draw in range(9)
        ]
        verdicts = [verdict for rows in studies for verdict in weigh(rows, RULE).verdicts]
        widths[known] = np.mean([verdict.net_high - verdict.net_low for verdict in verdicts])
    assert widths[True] < widths[False] / 2
    rows = planted(3, **ALTERNATING)
    notes = " ".join(weigh(rows, RULE).notes)
    assert "The price is fitted with a linear drift over the start times and a block for each of 2" in notes


def test_a_drift_of_the_metric_is_told_with_its_f():
    rows = planted(5, drift_points=3.0)
    (note,) = [note for note in weigh(rows, RULE).notes if "drift" in note and note.startswith("NDS")]
    assert "NDS (clean) drifts with the start time, by +" in note
    # The oracle: the residual sums of squares of both models, from numpy alone.
    table = tabulate(rows, RULE)
    values = {row.trial: 100 * row.value for row in select(rows, metric="NDS")}
    y = np.array([values[trial.name] for trial in table.trials])
    start = {row.trial: row.value for row in select(rows, metric="start_time")}
    model = np.hstack([table.treated, table.blocks])
    wider = np.hstack([model, np.array([[start[trial.name] - 1e9] for trial in table.trials])])
    rest = [np.sum((y - m @ np.linalg.lstsq(m, y, rcond=None)[0]) ** 2) for m in (model, wider)]
    expected = (rest[0] - rest[1]) / (rest[1] / 10)
    assert f"F(1, 10) = {expected:.2f}, p = {f_distribution.sf(expected, 1, 10):.2g}" in note


def test_a_metric_without_drift_is_told_drifting_in_one_study_of_twenty():
    told = sum(any("drifts" in note for note in weigh(planted(d), RULE).notes) for d in range(STUDIES))
    assert told / STUDIES == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / STUDIES))


def test_rows_that_do_not_say_when_they_ran_are_judged_as_before():
    rows = plant(NOTHING, draw=1)
    evidence = weigh(rows, RULE)
    assert not [note for note in evidence.notes if "start time" in note or "place" in note]


def test_a_resumed_trial_counts_where_it_started():
    rows = planted(0)
    again = [replace(r, step=50, value=r.value + 9) for r in rows if r.metric in ("start_time", "slot")]
    table = tabulate(rows, RULE)
    assert run_order([*again, *rows], table).places == run_order(rows, table).places
    assert (run_order([*again, *rows], table).start_s == run_order(rows, table).start_s).all()


def test_columns_that_leave_no_degree_of_freedom_are_left_out():
    rows = [row for row in planted(0, slots=4) if row.seed == 0]
    table = tabulate(rows, replace(RULE, seeds=(0,)))
    model = np.hstack([table.treated, table.blocks])  # 8 trials, 4 columns; three more for four places
    columns = order_columns(run_order(rows, table), np.ones(8, bool), model)
    assert (DRIFT in columns, PLACE in columns) == (True, False)


def in_cohorts(rows, per_cohort, lasts_s=300.0):
    """Every `per_cohort` trials of a seed start together but for moments; two cohorts run at once."""
    rng = np.random.default_rng(7)
    names = shuffled(sorted({row.trial for row in rows}), rng)
    made = []
    for row in rows:
        at = names.index(row.trial)
        slot = at // per_cohort % 2
        begins = 1e9 + lasts_s * (at // per_cohort // 2) + 2.0 * slot + 0.3 * (at % per_cohort)
        made.append(replace(row, time=begins + lasts_s))
        if row.metric == "step_ms":
            label = replace(row, unit="label", step=0, time=begins)
            made += [
                replace(label, metric="start_time", unit="s", value=begins),
                replace(label, metric="slot", value=float(slot)),
                replace(label, metric="host", value=7.0),
            ]
    return made


def test_seeds_that_are_cohorts_have_neither_drift_nor_place_to_tell():
    for draw in range(20):
        rows = in_cohorts(plant(NOTHING, draw=draw), per_cohort=8)
        table = tabulate(rows, RULE)
        order = run_order(rows, table)
        assert order.duration_s == pytest.approx(300, abs=3)
        model = np.hstack([table.treated, table.blocks])
        assert order_columns(order, np.ones(len(table.trials), dtype=bool), model) == {}
        told = [note for note in weigh(rows, RULE).notes if "start time" in note or "places" in note]
        assert told
        assert all("does not tell it from layers and seeds" in note for note in told)


def test_two_cohorts_of_a_seed_tell_places_and_no_drift():
    rows = in_cohorts(plant(NOTHING, draw=1), per_cohort=4)
    table = tabulate(rows, RULE)
    model = np.hstack([table.treated, table.blocks])
    assert list(order_columns(run_order(rows, table), np.ones(16, dtype=bool), model)) == [PLACE]


def test_cohorts_of_a_seed_one_after_another_tell_a_drift():
    rows = in_cohorts(plant(NOTHING, draw=1), per_cohort=2)  # four of a seed, two at a time
    table = tabulate(rows, RULE)
    model = np.hstack([table.treated, table.blocks])
    assert list(order_columns(run_order(rows, table), np.ones(16, dtype=bool), model)) == [DRIFT, PLACE]
