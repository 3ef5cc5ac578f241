"""What a calibration found, and whether its targets are met."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.calibration.design_efficiency import Agreement
from experiments.calibration.designs import LARGE, LEAN, ORDERED, SMALL
from experiments.calibration.error_rates import Tally, with_interval
from experiments.calibration.scenarios import Scenario
from experiments.calibration.simulated_power import Foretold

Rate = tuple[float, float, float]
"""A rate with its 95 % interval."""
FORETOLD_WITHIN = 0.03
"""How far a computed power may be from the simulated one."""
MOST_NAMED = 6
"""Conditions that miss a target and are named; the tables have all."""
STRESSED = ("seed x site", "drift 10 %", "alternating slots", "screening, correlation")
"""How the names of scenarios begin or go on that break an assumption and have a target of their own."""


@dataclass(frozen=True)
class Findings:
    """All that was simulated.

    Attributes:
        studies: per planted truth.
        scenarios: planted truths and what came out.
        agreements: studies against the full grid.
        sizes: (effect, seeds, tally) of the fraction with one look.
        foretold: computed and simulated power.
        seconds: how long it took.
    """

    studies: int
    scenarios: tuple[tuple[Scenario, Tally], ...]
    agreements: tuple[Agreement, ...]
    sizes: tuple[tuple[float, int, Tally], ...]
    foretold: tuple[Foretold, ...]
    seconds: float


@dataclass(frozen=True)
class Criterion:
    """A target.

    Attributes:
        what: what is counted.
        asked: the target.
        found: the rate with its 95 % interval; of several conditions the worst one.
        met: whether all rates are within the target.
    """

    what: str
    asked: str
    found: str
    met: bool


def criteria(findings: Findings) -> list[Criterion]:
    """Return the targets and whether they are met."""
    return [
        *_of_claims(findings.scenarios),
        *_of_plans(findings.scenarios),
        *_of_power(findings.scenarios),
        *_of_agreement(findings),
    ]


def _of_claims(scenarios: Sequence[tuple[Scenario, Tally]]) -> list[Criterion]:
    """Return what is asked of verdicts and intervals."""
    standard = [(s, t) for s, t in scenarios if s.is_standard]
    stressed = [(s, t) for s, t in scenarios if any(words in s.name for words in STRESSED)]
    margin = [(s, t) for s, t in scenarios if "the margin" in s.name]
    crashing = [(s, t) for s, t in scenarios if s.truth.faults.crashing]

    def wrong(tally: Tally) -> Rate:
        return tally.rate("any false claim")

    def covered(tally: Tally) -> Rate:
        return with_interval(tally.covered, tally.intervals)

    return [
        _at_most("any false claim, standard conditions", 0.05, standard, wrong),
        _at_most("any false claim, layers at the margin", 0.05, margin, wrong),
        _at_most(
            "any false claim, seed x site, drift 10 %, slots, dependent screening", 0.07, stressed, wrong
        ),
        _at_most(
            "a bias that loses by collapses is told PAYS", 0.05, crashing, lambda t: t.rate("false PAYS")
        ),
        _within("single 95 % intervals hold, standard conditions", 0.93, 0.97, standard, covered),
    ]


def _of_plans(scenarios: Sequence[tuple[Scenario, Tally]]) -> list[Criterion]:
    fixed = [(s, t) for s, t in scenarios if "fixed price" in s.name]
    return [
        _at_most(
            "the settled plan is worse than no bias, fixed prices",
            0.05,
            fixed,
            lambda t: t.rate("settled plan worse"),
        ),
        _at_most(
            "the best guess is worse than no bias, fixed prices",
            0.05,
            fixed,
            lambda t: t.rate("best guess worse"),
        ),
    ]


def _of_power(scenarios: Sequence[tuple[Scenario, Tally]]) -> list[Criterion]:
    def found(tally: Tally) -> Rate:
        return tally.rate("found")

    lines = []
    for study, limit in ((SMALL, 0.85), (LARGE, 0.95)):
        of_study = [(s, t) for s, t in scenarios if s.study.name == study.name]
        plain = [(s, t) for s, t in of_study if s.name in ("one layer pays", "one layer costs")]
        fallen = [(s, t) for s, t in of_study if s.name.startswith(("one collapsed", "two collapsed"))]
        lines.append(_at_least(f"one layer of two noises is found, {study.name}", limit, plain, found))
        lines.append(_at_least(f"... with one or two collapsed trainings, {study.name}", 0.75, fallen, found))
    return lines


def _of_agreement(findings: Findings) -> list[Criterion]:
    lines = []
    for one in findings.agreements:
        if one.study in (LEAN, ORDERED) and "to" in one.effect:
            rate = one.tally.rate("agrees")
            with_rule = f"effects {one.effect}, confidence {one.confidence:g}"
            what = f"same PAYS as the full grid, {one.study.name}, {with_rule}"
            lines.append(Criterion(what, "at least 95 %", spell(rate), rate[0] >= 0.95))
    off = [abs(one.computed - one.simulated[0]) for one in findings.foretold]
    if off:
        worst = findings.foretold[off.index(max(off))]
        text = f"{100 * max(off):.1f} points, at a net gain of {worst.gain:g} noises ({worst.design})"
        what = "computed power is the simulated one"
        lines.append(
            Criterion(what, f"within {100 * FORETOLD_WITHIN:g} points", text, max(off) <= FORETOLD_WITHIN)
        )
    return lines


def _at_most(
    what: str, limit: float, group: Sequence[tuple[Scenario, Tally]], rate: Callable[[Tally], Rate]
) -> Criterion:
    return _judge(what, f"at most {100 * limit:g} %", group, rate, lambda found: found - limit)


def _at_least(
    what: str, limit: float, group: Sequence[tuple[Scenario, Tally]], rate: Callable[[Tally], Rate]
) -> Criterion:
    return _judge(what, f"at least {100 * limit:g} %", group, rate, lambda found: limit - found)


def _within(
    what: str, low: float, high: float, group: Sequence[tuple[Scenario, Tally]], rate: Callable[[Tally], Rate]
) -> Criterion:
    asked = f"{100 * low:g} to {100 * high:g} %"
    return _judge(what, asked, group, rate, lambda found: max(low - found, found - high))


def _judge(
    what: str,
    asked: str,
    group: Sequence[tuple[Scenario, Tally]],
    rate: Callable[[Tally], Rate],
    beyond: Callable[[float], float],
) -> Criterion:
    """Return a target of several conditions: those that miss it most are named, else the nearest one.

    Args:
        what: what is counted.
        asked: the target, in words.
        group: the conditions.
        rate: of a tally.
        beyond: how far a rate is beyond the target; negative within.
    """
    rates = sorted(((rate(tally), scenario) for scenario, tally in group), key=lambda one: -beyond(one[0][0]))
    missed = [one for one in rates if not beyond(one[0][0]) <= 0]  # a rate of nothing is no number: missed
    shown = missed[:MOST_NAMED] or rates[:1]
    names = "; ".join(f"{scenario.label} {spell(found)}" for found, scenario in shown)
    names += "; ..." if len(missed) > MOST_NAMED else ""
    kept = f"{len(rates) - len(missed)} of {len(rates)}"
    met = bool(rates) and not missed
    return Criterion(what, asked, f"{kept}; {'missed' if missed else 'nearest'}: {names}", met)


def spell(rate: Rate) -> str:
    """Return a rate in per cent with its interval."""
    return f"{100 * rate[0]:.1f} % ({100 * rate[1]:.1f} to {100 * rate[2]:.1f})"
