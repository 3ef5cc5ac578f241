"""When and where the trials ran: is there a drift, are places unlike, and does either disturb the price?

A machine that slows down, or a GPU slower than another, makes trials differ that have nothing else unlike.
Trials of a seed run in random order (``experiments.study.trial_order``), so such a difference is no bias of
a layer's effect, but it is noise in it. Step times are fitted with a drift and with a block for each place
(a slot of a machine). A metric should depend on neither, and that is tested.

The trials of a cohort start together in one place. If every seed is one cohort, drift and place lie between
the seeds, which are blocks: they disturb nothing, and nothing tells them apart.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from experiments.analysis.design_table import DesignTable
from experiments.analysis.row_checks import final_values
from experiments.recipes.decision_rule import DecisionRule
from pipeline.metrics.rows import Row
from pipeline.metrics.run_place import HOST, SLOT, START_TIME

Array = NDArray[np.float64]

DRIFT, PLACE = "start time", "place"
MIN_SPREAD = 0.1
"""Spread of the start times within blocks, in durations of a trial, below which they tell nothing of a drift:
trials that ran side by side met the same machine, whichever began some seconds earlier."""
SIGNIFICANT = 0.05
"""Probability below which a drift or a difference of places is told as found: by chance one in twenty is."""


@dataclass(frozen=True)
class RunOrder:
    """When and where each trial of a table started.

    Attributes:
        start_s: (trials,) Unix time, s; NaN for a trial whose rows do not say.
        places: (machine, slot) of each trial, as labels.
        duration_s: from the start of a trial to its last row, median over the trials; 0 if unknown.
    """

    start_s: Array
    places: tuple[tuple[float, float], ...]
    duration_s: float = 0.0

    @property
    def known(self) -> NDArray[np.bool_]:
        """(trials,) whether the rows say when the trial started."""
        return np.isfinite(self.start_s)


def run_order(rows: Sequence[Row], table: DesignTable) -> RunOrder:
    """Read start time, machine and slot off the rows; of a trial that was resumed, those of its first start.

    Args:
        rows: the rows of the study.
        table: its design; its trials in order.
    """
    first: dict[tuple[str, str], Row] = {}
    last_s: dict[str, float] = {}
    for row in rows:
        last_s[row.trial] = max(row.time, last_s.get(row.trial, 0.0))
        if row.metric in (START_TIME, HOST, SLOT):
            key = row.trial, row.metric
            if key not in first or row.step < first[key].step:
                first[key] = row

    def value(trial: str, metric: str) -> float:
        row = first.get((trial, metric))
        return np.nan if row is None else row.value

    names = [trial.name for trial in table.trials]
    places = tuple((value(name, HOST), value(name, SLOT)) for name in names)
    start_s = np.array([value(name, START_TIME) for name in names])
    spans = np.array([last_s.get(name, np.nan) for name in names]) - start_s
    known = spans[np.isfinite(spans)]
    return RunOrder(start_s, places, max(float(np.median(known)), 0.0) if known.size else 0.0)


def order_columns(order: RunOrder, usable: NDArray[np.bool_], model: Array) -> dict[str, Array]:
    """Return what a linear model can take beside its own columns, and keep a degree of freedom.

    Args:
        order: when and where the trials ran.
        usable: (trials,) which of them are fitted.
        model: (usable trials, columns) the columns of the model.

    Returns:
        ``DRIFT`` -> (usable trials, 1): 0 at the first start, 1 at the last. ``PLACE`` -> (usable trials,
        places - 1). Either is left out if it is constant, if the model's columns decide it (a drift: but for
        ``MIN_SPREAD``), or if no degree of freedom would be left.
    """
    start = order.start_s[usable]
    places = [place for place, use in zip(order.places, usable, strict=True) if use]
    labels = list(dict.fromkeys(places))
    candidates = {
        PLACE: np.array([[place == label for label in labels[1:]] for place in places], dtype=float)
    }
    _, rest = _least_squares(model, start - start.min())
    if np.sqrt(rest / len(start)) >= MIN_SPREAD * order.duration_s:
        drift = ((start - start.min()) / max(np.ptp(start), 1.0))[:, None]
        candidates = {DRIFT: drift, **candidates}
    taken = {}
    for name, columns in candidates.items():
        wider = np.hstack([model, columns])
        rank = np.linalg.matrix_rank(wider)
        if columns.size and rank == wider.shape[1] < len(wider):
            taken[name], model = columns, wider
    return taken


def with_order_blocks(table: DesignTable, order: RunOrder) -> tuple[DesignTable, tuple[str, ...]]:
    """Return the table with a drift and the places among its blocks, for a fit of times, and what was done.

    Trials that diverged are in no fit. If it is not known when another trial started, as in studies of
    earlier versions, nothing is added.

    Args:
        table: the design.
        order: when and where its trials started.
    """
    usable = np.array([trial.name not in table.diverged for trial in table.trials], dtype=bool)
    if not usable.any() or not order.known[usable].all():
        return table, ()
    blocks = table.blocks[usable]
    model = np.hstack([table.treated[usable], blocks[:, blocks.any(axis=0)]])
    found = order_columns(order, usable, model)
    num_places = len({place for place, use in zip(order.places, usable, strict=True) if use})
    words = {DRIFT: "a linear drift over the start times", PLACE: f"a block for each of {num_places} places"}
    asked = [DRIFT, *([PLACE] if num_places > 1 else [])]
    notes = [f"The price is fitted with {' and '.join(words[name] for name in found)}."] if found else []
    notes += [
        f"The price is fitted without {words[name]}: the order in which the trials ran does not tell it "
        f"from layers and seeds, or leaves no degree of freedom for it."
        for name in asked
        if name not in found
    ]
    whole = np.zeros((len(usable), sum(columns.shape[1] for columns in found.values())))
    if found:
        whole[usable] = np.hstack(list(found.values()))
    return replace(table, more_blocks=tuple(map(tuple, whole.T.tolist()))), tuple(notes)


def about_run_order(
    rows: Sequence[Row], table: DesignTable, rule: DecisionRule, left_out: Collection[str] = ()
) -> list[str]:
    """Test whether the rule's metric depends on start time or place; return a sentence for each.

    Args:
        rows: at least the rows of the rule's metric, and those that say when and where trials started.
        table: the design.
        rule: names metric and condition.
        left_out: trials that the fit of the gains leaves out, beside those that diverged or were stopped.

    Returns:
        Nothing for rows of earlier versions, which do not say it.
    """
    order = run_order(rows, table)
    out = {*left_out, *table.diverged, *table.stopped}
    usable = np.array([trial.name not in out for trial in table.trials], dtype=bool) & order.known
    if not usable.any():
        return []
    values = final_values(rows, rule.metric, rule.condition)
    response = np.array([100 * values.get(trial.name, np.nan) for trial in table.trials])[usable]
    blocks = table.blocks[usable]
    model = np.hstack([table.treated[usable], blocks[:, blocks.any(axis=0)]])
    if np.linalg.matrix_rank(model) < model.shape[1] or not np.isfinite(response).all():
        return []
    columns = order_columns(order, usable, model)
    _, rest = _least_squares(model, response)
    notes = []
    for name, added in columns.items():
        wider = np.hstack([model, added])
        effect, left = _least_squares(wider, response)
        num, df = added.shape[1], len(wider) - wider.shape[1]
        f_value = (rest - left) / num / (left / df)
        p_value = float(fdtrc(num, df, f_value))
        test = f"F({num}, {df}) = {f_value:.2f}, p = {p_value:.2g}"
        notes.append(_sentence(name, f"{rule.metric} ({rule.condition})", p_value, test, effect[-1]))
    return notes


def _least_squares(model: Array, values: Array) -> tuple[Array, np.float64]:
    """Return coefficients and the sum of squared residuals."""
    effect = np.asarray(np.linalg.lstsq(model, values)[0], dtype=np.float64)
    return effect, np.float64(((values - model @ effect) ** 2).sum())


def _sentence(name: str, metric: str, p_value: float, test: str, change: float) -> str:
    if p_value >= SIGNIFICANT:
        what = "drift with the start time" if name == DRIFT else "differ between the places that ran trials"
        return f"{metric} does not {what}, as far as this study can tell ({test})."
    found = (
        f"drifts with the start time, by {change:+.2f} points from the first start to the last"
        if name == DRIFT
        else "differs between the places that ran trials"
    )
    return (
        f"{metric} {found} ({test}); trials of a seed ran in random order, so the gains are not shifted by "
        f"it, but less certain."
    )
