"""What a calibration found, and whether its targets are met."""

from dataclasses import dataclass

from experiments.calibration.design_efficiency import Agreement
from experiments.calibration.error_rates import LEAN, ORDERED, Scenario, Tally, with_interval


@dataclass(frozen=True)
class Findings:
    """All that was simulated.

    Attributes:
        studies: per planted truth.
        scenarios: planted truths and what came out.
        agreements: studies against the full grid.
        sizes: (effect, seeds, tally) of the fraction with one look.
        seconds: how long it took.
    """

    studies: int
    scenarios: tuple[tuple[Scenario, Tally], ...]
    agreements: tuple[Agreement, ...]
    sizes: tuple[tuple[float, int, Tally], ...]
    seconds: float


@dataclass(frozen=True)
class Criterion:
    """A target.

    Attributes:
        what: what is counted.
        asked: the target.
        found: the rate with its 95 % interval.
        met: whether the rate is within the target.
    """

    what: str
    asked: str
    found: str
    met: bool


def criteria(findings: Findings) -> list[Criterion]:
    """Return the targets and whether they are met."""
    tallies = {scenario.name: tally for scenario, tally in findings.scenarios}
    lines = [
        _at_most(f"any false PAYS: {name}", 0.05, tally.rate("false PAYS"))
        for name, tally in tallies.items()
        if "no effect" in name
    ]
    lines.append(_at_least("one layer of twice the noise is found", 0.90, tallies["one layer"].rate("found")))
    for name in ("no effect", "one layer", "two opposite layers", "interaction of two layers"):
        tally = tallies[name]
        rate = with_interval(tally.covered, tally.intervals)
        held = Criterion(f"95 % intervals hold: {name}", "93 to 97 %", _spell(rate), 0.93 <= rate[0] <= 0.97)
        lines.append(held)
    margin = tallies["every gain at the margin"].rate("false equivalence")
    lines.append(_at_most("equivalence accepted wrongly", 0.05, margin))
    for found in findings.agreements:
        if found.study in (LEAN, ORDERED):
            what = f"same PAYS as the grid, {found.study.name}, {LEAN.most_trials} trials"
            rule = f"effects {found.effect}, confidence {found.confidence:g}"
            lines.append(_at_least(f"{what}, {rule}", 0.95, found.tally.rate("agrees")))
    return lines


def _at_most(what: str, limit: float, rate: tuple[float, float, float]) -> Criterion:
    return Criterion(what, f"at most {100 * limit:g} %", _spell(rate), rate[0] <= limit)


def _at_least(what: str, limit: float, rate: tuple[float, float, float]) -> Criterion:
    return Criterion(what, f"at least {100 * limit:g} %", _spell(rate), rate[0] >= limit)


def _spell(rate: tuple[float, float, float]) -> str:
    return f"{100 * rate[0]:.1f} % ({100 * rate[1]:.1f} to {100 * rate[2]:.1f})"
