"""The sentences of a report: answer, recommendation, and how to read the verdicts."""

import math
from collections.abc import Sequence

from experiments.analysis.confirmation import Confirmed
from experiments.analysis.decide import Evidence
from experiments.analysis.recommend import Recommendation, num_treated
from experiments.analysis.verdicts import COSTS, PAYS, UNDECIDED
from experiments.reporting.tables.base import signed, term_label

EQUIVALENT = "EQUIVALENT"
"""Undecided, and certain to be within the rule's margin."""


def answer(evidence: Evidence) -> str:
    """Return the verdicts as one sentence."""
    groups: dict[str, list[str]] = {kind: [] for kind in (PAYS, COSTS, EQUIVALENT, UNDECIDED)}
    for v in evidence.verdicts:
        kind = EQUIVALENT if v.verdict == UNDECIDED and v.equivalent else v.verdict
        groups[kind].append(term_label(v, evidence))
    table = evidence.table
    trials = len(table.trials) - len(table.diverged)
    bias = f"the {' or '.join(evidence.rule.treatments)} bias"
    if not any(groups[kind] for kind in (PAYS, COSTS, EQUIVALENT)):
        where = listing(groups[UNDECIDED])
        return f"Undecided: after {trials} trials {bias} neither pays off nor costs beyond doubt at {where}."
    says = {
        PAYS: "pays off at",
        COSTS: "costs more than it gains at",
        EQUIVALENT: "makes no difference worth having at",
        UNDECIDED: "is undecided at",
    }
    sentence = (
        f"{bias} {listing([f'{says[kind]} {listing(terms)}' for kind, terms in groups.items() if terms])}."
    )
    return sentence[0].upper() + sentence[1:]


def advise(advice: Recommendation, evidence: Evidence, confirmed: Sequence[Confirmed] = ()) -> str:
    """Return the recommendation, and what its confirmation measured, in a few sentences."""
    rule, table, best = evidence.rule, evidence.table, advice.best
    if num_treated(best.levels, table) == 0:
        return f"Recommended: {rule.baseline} everywhere; no plan is predicted to be worth its price."
    where = {
        level: [site for site, own in zip(table.sites, best.levels, strict=True) if own == level]
        for level in rule.treatments
    }
    parts = [f"{level} at {listing(sites)}" for level, sites in where.items() if sites]
    speed = f" and {advice.samples_per_s:.3g} samples/s" if advice.samples_per_s > 0 else ""
    gain = f"{signed(best.gain)} ± {best.half_width:.2f}"
    text = (
        f"Recommended: {listing(parts)}. Predicted: {advice.accuracy:.2f} {rule.metric}{speed} "
        f"({gain} points, step time {signed(best.slowdown_percent, 1)} %)."
    )
    if advice.measured:
        own = advice.measured
        at = f" and {own.samples_per_s:.3g} samples/s" if own.samples_per_s > 0 else ""
        text += f" Measured: {own.accuracy:.2f} {rule.metric}{at}, mean of {own.seeds} trials."
    text += "".join(_confirmation(one, evidence) for one in confirmed if one.levels == best.levels)
    if advice.open_sites:
        text += f" A best guess, not settled: {listing(advice.open_sites)}."
    return text


def _confirmation(one: Confirmed, evidence: Evidence) -> str:
    speed = f" and {one.samples_per_s:.3g} samples/s" if one.samples_per_s > 0 else ""
    gain = f", {signed(one.gain)} [{signed(one.low)}, {signed(one.high)}] over {evidence.table.baseline}"
    gain = gain if math.isfinite(one.gain) else ""
    measured = f"{one.accuracy:.2f} {evidence.rule.metric}{speed}{gain}"
    return f" Confirmed on fresh seeds: {measured}, {one.seeds} trials."


def reading(evidence: Evidence) -> str:
    """Return how to read the table of verdicts, in a few sentences."""
    table, rule = evidence.table, evidence.rule
    text = (
        f"Points of {rule.metric} ({rule.condition}); net gain is gain minus price, with the noise of both. "
        f"Together the verdicts are right with {100 * rule.confidence:g} % confidence (Holm), and so are the "
        f"intervals of the gains (Bonferroni). One trial's noise is {evidence.noise:.2f} points, estimated "
        f"with {evidence.residual_df} degrees of freedom."
    )
    if evidence.num_scenes:
        share = max(evidence.scene_share, default=0.0)
        text += (
            f" {evidence.num_scenes} logs were resampled, each with all of its scenes; their choice makes up "
            f"to {100 * share:.0f} % of a gain's squared error."
        )
    if len(table.interim_analyses) > 1:
        text += (
            f" Look {table.look} of at most {len(table.interim_analyses)}; "
            f"{100 * evidence.spent:.0f} % of the error probability is spent."
        )
    if table.waiting:
        text += f" Seeds {', '.join(map(str, table.waiting))} wait for the next look."
    return text


def listing(words: Sequence[str]) -> str:
    """Join words for a sentence: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
