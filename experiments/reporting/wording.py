"""The sentences of a report: answer, plan, fixed price, and how to read the verdicts."""

import math
from collections.abc import Sequence

from experiments.analysis.confirmation import Confirmed
from experiments.analysis.decide import Evidence
from experiments.analysis.decision.break_even import BreakEven
from experiments.analysis.recommend import Candidate, Recommendation, num_treated
from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED, Verdict
from experiments.reporting.tables.base import counted, short_names, signed, term_label
from experiments.reporting.tables.price import STEP_NAMES, slowdown_with_interval

SAYS = {
    PAYS: "pays off at",
    COSTS: "costs more than it gains at",
    NO_DIFFERENCE: "makes no difference worth having at",
    UNDECIDED: "is undecided at",
}


def answer(evidence: Evidence, advice: Recommendation | None = None) -> str:
    """Return the verdicts as one sentence, and a second one if layers pay and yet no bias wins."""
    table = evidence.table
    trials = len(table.trials) - len(table.diverged)
    bias = f"the {' or '.join(evidence.rule.treatments)} bias"
    if evidence.price is None:
        return f"No verdicts yet: {trials} trials tell what {bias} gains, and its price is not measured."
    groups: dict[str, list[str]] = {kind: [] for kind in SAYS}
    for v in evidence.verdicts:
        groups[v.verdict].append(f"{term_label(v, evidence)}{_reserve(v)}")
    if not any(terms for kind, terms in groups.items() if kind != UNDECIDED):
        where = listing(groups[UNDECIDED])
        return f"Undecided: after {trials} trials {bias} neither pays off nor costs beyond doubt at {where}."
    parts = [f"{says} {listing(groups[kind])}" for kind, says in SAYS.items() if groups[kind]]
    text = _sentence(f"{bias} {listing(parts)}")
    if advice is not None and advice.no_bias_wins and groups[PAYS]:
        text += " By the rule no bias wins all the same: the fixed price is more than these layers earn."
    return text


def _reserve(verdict: Verdict) -> str:
    """Return what a PAYS leaves out: trainings that fail more often with the bias."""
    failed = verdict.failures
    if verdict.verdict != PAYS or failed is None:
        return ""
    return (
        f" where it trains (failed in {failed.failed_with} of {failed.trials_with} against "
        f"{failed.failed_without} of {failed.trials_without})"
    )


def advise(
    advice: Recommendation, evidence: Evidence, confirmed: Sequence[Confirmed] = ()
) -> tuple[str, ...]:
    """Return what is settled about plans, and the best guess with its prediction: a line each."""
    best, settled = advice.best, advice.settled
    text = []
    if settled is None or settled.levels != best.levels:
        text.append(_guess(advice, evidence))
    if num_treated(best.levels, evidence.table):
        text += [_prediction(advice, evidence), f"It pays {spell_break_even(best.break_even)}."]
    text += [_confirmation(one, evidence) for one in confirmed if one.levels == best.levels]
    return tuple(filter(None, (plan_answer(advice, evidence), " ".join(text))))


def plan_answer(advice: Recommendation, evidence: Evidence) -> str:
    """Return the answer about whole plans, the fixed price included."""
    baseline = evidence.rule.baseline
    if advice.settled is not None:
        one = advice.settled
        return (
            f"Settled plan: {spell_plan(one, evidence)}; it nets {signed(one.net)} points over {baseline} "
            f"everywhere, at least {signed(one.net_low)}."
        )
    if not advice.no_bias_wins:
        return f"No plan is settled: none certainly nets more, or less, than {baseline} everywhere."
    one = max((c for c in advice.candidates if num_treated(c.levels, evidence.table)), key=lambda c: c.net)
    rate = evidence.rule.price_points_per_percent
    if not rate:
        return (
            f"By the rule no bias wins: speed has no price, and every plan loses points. The least bad, "
            f"{spell_plan(one, evidence)}, gains {signed(one.gain)} ± {one.half_width:.2f} points."
        )
    affordable = max(one.gain, 0.0) / rate
    return (
        f"By the rule no bias wins: every plan costs more than it gains. The least costly, "
        f"{spell_plan(one, evidence)}, gains {signed(one.gain)} ± {one.half_width:.2f} points and costs "
        f"{one.price:.2f}: step time {signed(one.slowdown_percent, 1)} %, where at most {affordable:.1f} % "
        f"would pay. It pays {spell_break_even(one.break_even)}."
    )


def _guess(advice: Recommendation, evidence: Evidence) -> str:
    best = advice.best
    if num_treated(best.levels, evidence.table) == 0:
        return f"Best guess: {evidence.rule.baseline} everywhere; no plan is expected to be worth its price."
    text = (
        f"Best guess: {spell_plan(best, evidence)}; net {signed(best.utility)} points to be expected "
        f"({signed(best.net)} as estimated)."
    )
    if not advice.open_sites:
        return text
    return f"{text} Of its layers, these do not PAY by themselves: {listing(advice.open_sites)}."


def _prediction(advice: Recommendation, evidence: Evidence) -> str:
    best, metric = advice.best, evidence.rule.metric
    speed = f" and {advice.samples_per_s:.3g} samples/s" if advice.samples_per_s > 0 else ""
    text = (
        f"Predicted: {advice.accuracy:.2f} {metric}{speed} ({signed(best.gain)} ± {best.half_width:.2f} "
        f"points, step time {signed(best.slowdown_percent, 1)} %)."
    )
    if advice.measured:
        own = advice.measured
        at = f" and {own.samples_per_s:.3g} samples/s" if own.samples_per_s > 0 else ""
        text += f" Measured: {own.accuracy:.2f} {metric}{at}, mean of {counted(own.seeds, 'trial')}."
    return text


def spell_plan(plan: Candidate, evidence: Evidence) -> str:
    """Return a plan for a sentence: ``window at decoder.0.cross and decoder.2.cross``."""
    sites = evidence.table.sites
    where = {
        level: [site for site, own in zip(sites, plan.levels, strict=True) if own == level]
        for level in evidence.rule.treatments
    }
    parts = [f"{level} at {listing(at)}" for level, at in where.items() if at]
    return listing(parts) if parts else f"{evidence.rule.baseline} everywhere"


def spell_break_even(rate: BreakEven) -> str:
    """Return up to which price a bias pays, to follow "it pays"."""
    if math.isinf(rate.low):
        return "at any price: it slows nothing down"
    upper = f"{rate.high:.3g}" if math.isfinite(rate.high) else "no bound, its slow-down may be none"
    if math.isinf(rate.rate):
        return f"at any price by the estimates, certainly up to {rate.low:.3g} points per 1 % of step time"
    if math.isnan(rate.rate):
        return "at no price by the estimates: it gains nothing, and slows nothing down"
    return f"up to {rate.rate:.3g} points per 1 % of step time [{rate.low:.3g}, {upper}]"


def fixed_price(evidence: Evidence) -> str:
    """Return the line about what any bias costs at all; empty without a price."""
    price, rule = evidence.price, evidence.rule
    if price is None or rule.price_points_per_percent == 0:
        return ""
    if not price.fixed_apart:
        return "The design cannot tell the fixed price from the layers' own: each layer's price holds it."
    costs = [
        f"{slowdown_with_interval(own, 0, rule.confidence)} of {STEP_NAMES[step]}"
        for step, own in evidence.price_by_step.items()
    ]
    points = rule.price_points_per_percent * float(price.percent[0])
    return (
        f"Fixed price of any bias, once per model (AQR and generator): {listing(costs)}; {signed(points)} "
        f"points by the rule, charged to plans and to no layer."
    )


def _confirmation(one: Confirmed, evidence: Evidence) -> str:
    speed = f" and {one.samples_per_s:.3g} samples/s" if one.samples_per_s > 0 else ""
    gain = f", {signed(one.gain)} [{signed(one.low)}, {signed(one.high)}] over {evidence.table.baseline}"
    gain = gain if math.isfinite(one.gain) else ""
    measured = f"{one.accuracy:.2f} {evidence.rule.metric}{speed}{gain}"
    return f"Confirmed on fresh seeds: {measured}, {counted(one.seeds, 'trial')}."


def _between(shares: Sequence[float]) -> str:
    low, high = (f"{100 * end:.0f}" for end in (min(shares), max(shares)))
    return f"{high} %" if low == high else f"{low} to {high} %"


def reading(evidence: Evidence) -> str:
    """Return how to read the table of verdicts, in a few sentences."""
    table, rule = evidence.table, evidence.rule
    sure = f"{100 * rule.confidence:g} %"
    text = (
        f"Points of {rule.metric} ({rule.condition}); net gain is gain minus the layer's own price, with the "
        f"noise of both. With {sure} confidence no verdict is false, PAYS, COSTS and NO DIFFERENCE of all "
        f"layers together (Holm); so do all intervals of gains hold (Bonferroni). Net gains' intervals are "
        f"one by one, at the level at which the layer is tested. One trial's noise is {evidence.noise:.2f} "
        f"points, estimated with {evidence.residual_df} degrees of freedom."
    )
    text += _about_noise(evidence)
    if evidence.num_scenes:
        share = max(evidence.scene_share, default=0.0)
        text += (
            f" {evidence.num_scenes} logs were resampled, each with all of its scenes; their choice makes up "
            f"to {100 * share:.0f} % of a gain's squared error."
        )
    if shares := [v.price_share for v in evidence.verdicts if not math.isnan(v.price_share)]:
        text += (
            f" Of a net gain's squared error the price makes up {_between(shares)}, gains the rest: "
            f"{'time the steps longer' if max(shares) > 0.5 else 'more trainings narrow it'}."
        )
    if len(table.interim_analyses) > 1:
        text += (
            f" Look {table.look} of at most {len(table.interim_analyses)}; "
            f"{100 * evidence.spent:.0f} % of the error probability is spent."
        )
    if table.waiting:
        text += f" Seeds {', '.join(map(str, table.waiting))} wait for the next look."
    return text


def _about_noise(evidence: Evidence) -> str:
    """Return the tests of the noise: do gains differ between seeds, does the model fit the arms?"""
    squares = evidence.gain.mean_squares
    if squares is None:
        return ""
    (by_seed, p_seed), (lack, p_lack) = squares.seed_by_site_f, squares.lack_of_fit_f
    text = ""
    if math.isfinite(by_seed):
        df = f"{squares.seed_by_site_df}, {squares.rest_df}"
        text += f" Gains differ between seeds by F({df}) = {by_seed:.2f} (p = {p_seed:.2g})."
    if math.isfinite(lack):
        df = f"{squares.lack_of_fit_df}, {squares.pure_error_df}"
        text += f" The model's lack of fit is F({df}) = {lack:.2f} (p = {p_lack:.2g})."
    return text


def about_failures(evidence: Evidence) -> tuple[str, ...]:
    """Return a sentence per site and treatment with which more trainings fail than without."""
    short = short_names(evidence.table.sites)
    return tuple(
        f"More trainings fail with {f.treatment} at {short[f.site]}: {f.failed_with} of {f.trials_with} "
        f"against {f.failed_without} of {f.trials_without} (Fisher's exact test, p = {f.p_value:.2g})."
        for f in evidence.failures
        if f.more_with
    )


def listing(words: Sequence[str]) -> str:
    """Join words for a sentence: ``a, b and c``; nothing for no words."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
