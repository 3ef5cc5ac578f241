"""What the simulated studies gave, as CSV tables, Markdown and plots."""

import csv
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.calibration.design_efficiency import Agreement
from experiments.calibration.error_rates import APART, GRID, LEAN, ORDERED, Scenario, Tally, with_interval

PACKAGES = ("numpy", "scipy", "statsmodels")
INK, ACCENT, SECOND = "#333333", "#0b6e99", "#b3541e"


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


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write README.md, three CSV tables and two plots; return the README's path."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "scenarios": _scenario_lines(findings),
        "economy": _economy_lines(findings),
        "sizes": _size_lines(findings),
    }
    for name, lines in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    _draw_rates(findings, folder / "rates.svg")
    _draw_sizes(findings, folder / "sizes.svg")
    readme = folder / "README.md"
    readme.write_text(_markdown(findings), encoding="utf-8")
    return readme


EVENTS = ("false PAYS", "false COSTS", "found", "all intervals hold", "false equivalence", "settled")
_SCENARIO_HEAD = ("planted", "study", *EVENTS, "single intervals hold", "undecided verdicts", "trials")
_ECONOMY_HEAD = (
    *("study", "trials", "effects", "confidence", "agrees", "false PAYS", "missed PAYS"),
    *("grid false PAYS", "grid missed PAYS", "undecided verdicts"),
)
_SIZE_HEAD = ("effect", "trials", "agrees", "right", "false PAYS", "missed PAYS", "undecided verdicts")


def _scenario_lines(findings: Findings) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = [_SCENARIO_HEAD]
    for scenario, tally in findings.scenarios:
        single = tally.covered / max(tally.intervals, 1)
        rates = (tally.rate(event)[0] for event in EVENTS)
        undecided = tally.undecided / max(tally.verdicts, 1)
        mean_trials = tally.trials / tally.studies
        lines.append((scenario.name, scenario.study.name, *rates, single, undecided, mean_trials))
    return lines


def _economy_lines(findings: Findings) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = [_ECONOMY_HEAD]
    for found in findings.agreements:
        tally = found.tally
        rates = (tally.rate(event)[0] for event in _ECONOMY_HEAD[4:9])
        undecided = tally.undecided / tally.verdicts
        most = found.study.most_trials
        lines.append((found.study.name, most, found.effect, found.confidence, *rates, undecided))
    return lines


def _size_lines(findings: Findings) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = [_SIZE_HEAD]
    for effect, seeds, tally in findings.sizes:
        rates = (tally.rate(event)[0] for event in _SIZE_HEAD[2:6])
        lines.append((effect, seeds * len(LEAN.arms), *rates, tally.undecided / tally.verdicts))
    return lines


def _markdown(findings: Findings) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    targets = [("target", "asked", "found (95 % interval)", "")]
    targets += [(c.what, c.asked, c.found, "met" if c.met else "**missed**") for c in criteria(findings)]
    return (
        _HEAD.format(
            studies=findings.studies,
            machine=f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}",
            versions=versions,
            seconds=f"{findings.seconds:.0f}",
            today=today,
        )
        + f"\n## Targets\n\n{_table(targets)}\n"
        + f"\n## Planted truths\n\n{_READING}\n\n{_table(_scenario_lines(findings))}\n\n![Rates](rates.svg)\n"
        + f"\n## Economy\n\n{_ECONOMY}\n\n{_table(_economy_lines(findings))}\n"
        + f"\n## Smaller effects\n\n{_SIZES}\n\n![Agreement and undecided verdicts](sizes.svg)\n\n"
        + f"{_table(_size_lines(findings))}\n"
    )


_HEAD = """# Calibration: how often a verdict is right

Simulated studies whose truth is known, fitted and judged by the code that judges real ones.

*Command.* `biaswise calibrate --studies {studies}`; {machine}, {versions}; {seconds} s, {today}.
A rate's spread is its 95 % interval (Clopper and Pearson); at a rate of 5 % in 1,000, 1.4 points.

*Unit.* The standard deviation of one training run (of one arm, within a seed). Effects are net of price.
A seed's own level varies by 2, shared by its arms. 150 validation scenes; three tenths of a run's variance
differ from scene to scene; a site's gain varies between scenes so that its mean over all of them has a
standard deviation of 0.16 (a gain of 2 that varies by its own size over 150 scenes). These are
assumptions: the noise of a real study is in its report.
"""
_READING = """*found*: every planted gain PAYS and every planted loss COSTS. *all intervals hold*: the printed
intervals of all sites together, when the study ends. *single intervals*: each site's own 95 % interval after
all trials. *trials*: on average. A collapsed run ends 20 lower than it should; a diverged one without a
number; early stopping ends the worst quarter of every seed's runs, by a value that correlates 0.8 with the
last one."""
_ECONOMY = f"""Six layers; each has no effect with probability one half, else one of the named size, three of
four positive. *agrees*: the PAYS layers are those of the full grid ({GRID.most_trials} trials). A study's
trainings are some of the grid's own, as if the grid had been completed afterwards; only *{APART.name}*
and *another full grid* have other trainings and other scenes. Both sides may err: two procedures with up to
2.5 % false PAYS each (half of the 5 % that the rule allows in both directions) disagree in up to 5 % of the
studies even if no gain is ever missed. How often another full grid agrees with the first is the best that
trainings of one's own can reach.

A *screening* takes the training with the bias in all layers, which is an arm of the study, evaluates it with
layers switched off, and ranks them (`Rule.order`; its estimates are assumed to err by 0.7, or by twice that):
Holm's procedure then weighs each layer twice as much as the next."""
_SIZES = "One look at the end, half of the layers with the effect, confidence 0.95."


def _at_most(what: str, limit: float, rate: tuple[float, float, float]) -> Criterion:
    return Criterion(what, f"at most {100 * limit:g} %", _spell(rate), rate[0] <= limit)


def _at_least(what: str, limit: float, rate: tuple[float, float, float]) -> Criterion:
    return Criterion(what, f"at least {100 * limit:g} %", _spell(rate), rate[0] >= limit)


def _spell(rate: tuple[float, float, float]) -> str:
    return f"{100 * rate[0]:.1f} % ({100 * rate[1]:.1f} to {100 * rate[2]:.1f})"


def _table(lines: Sequence[Sequence[object]]) -> str:
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    texts.insert(1, ["---"] * len(texts[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def _draw_rates(findings: Findings, path: Path) -> None:
    names = [f"{scenario.name}" for scenario, _ in findings.scenarios]
    figure = Figure(figsize=(9, 0.36 * len(names) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for y, (_, tally) in enumerate(findings.scenarios):
        _bar(left, y, tally.rate("false PAYS"), ACCENT)
        _bar(right, y, with_interval(tally.covered, tally.intervals), ACCENT)
    left.axvline(5, color=SECOND, linewidth=1)
    right.axvspan(93, 97, color=SECOND, alpha=0.15, linewidth=0)
    left.set(xlabel="studies with any false PAYS, %", xlim=(0, 6))
    right.set(xlabel="95 % intervals that hold the truth, %", xlim=(91, 99))
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    _finish(figure, path)


def _draw_sizes(findings: Findings, path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    seeds = sorted({count for _, count, _ in findings.sizes})
    for index, count in enumerate(seeds):
        curve = [(effect, tally) for effect, found, tally in findings.sizes if found == count]
        effects = [effect for effect, _ in curve]
        look = {
            "color": ACCENT,
            "alpha": 0.35 + 0.65 * index / max(len(seeds) - 1, 1),
            "marker": "o",
            "ms": 4,
        }
        label = f"{count * len(LEAN.arms)} trials"
        left.plot(effects, [100 * tally.rate("agrees")[0] for _, tally in curve], label=label, **look)
        right.plot(
            effects, [100 * tally.undecided / tally.verdicts for _, tally in curve], label=label, **look
        )
    left.axhline(95, color=SECOND, linewidth=1)
    right.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    left.set(xlabel="planted effect, noises of one run", ylabel="same PAYS layers as the full grid, %")
    right.set(xlabel="planted effect, noises of one run", ylabel="undecided verdicts, %", ylim=(0, 100))
    left.set_ylim(0, 100)
    right.annotate("share without effect", (0.02, 45), xycoords=("axes fraction", "data"), fontsize=8)
    left.legend(frameon=False)
    _finish(figure, path)


def _bar(axes: Axes, y: float, rate: tuple[float, float, float], colour: str) -> None:
    axes.plot([100 * rate[1], 100 * rate[2]], [y, y], color=colour, linewidth=1.4)
    axes.plot(100 * rate[0], y, "o", color=colour, markersize=5)


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(axis="x", linewidth=0.4, color="#cccccc")
        axes.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):  # text stays text: small
        figure.savefig(path, metadata={"Date": None})
