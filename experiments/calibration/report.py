"""What a calibration found, as a README in Markdown, CSV tables and plots."""

import csv
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from textwrap import fill

from experiments.calibration.error_rates import AGAIN, APART, GRID, LEAN
from experiments.calibration.figures import draw_rates, draw_sizes
from experiments.calibration.findings import Findings, criteria
from pipeline.metrics.versions import commit

PACKAGES = ("numpy", "scipy", "statsmodels")
COLUMNS = 100
"""Longest line of prose in the README."""


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write README.md, three CSV tables and two plots; return the README's path."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "scenarios": _scenario_lines(findings),
        "design_efficiency": _efficiency_lines(findings),
        "sizes": _size_lines(findings),
    }
    for name, lines in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    draw_rates(findings, folder / "rates.svg")
    draw_sizes(findings, folder / "sizes.svg")
    readme = folder / "README.md"
    readme.write_text(_markdown(findings), encoding="utf-8")
    return readme


EVENTS = ("false PAYS", "false COSTS", "found", "all intervals hold", "false equivalence", "settled")
_SCENARIO_HEAD = ("planted", "study", *EVENTS, "single intervals hold", "undecided verdicts", "trials")
_EFFICIENCY_HEAD = (
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


def _efficiency_lines(findings: Findings) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = [_EFFICIENCY_HEAD]
    for found in findings.agreements:
        tally = found.tally
        rates = (tally.rate(event)[0] for event in _EFFICIENCY_HEAD[4:9])
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
    targets = [("target", "asked", "found (95 % interval)", "")]
    targets += [(c.what, c.asked, c.found, "met" if c.met else "**missed**") for c in criteria(findings)]
    parts = (
        _HEAD.format(recorded=_recorded(findings), studies=findings.studies),
        PROSE["assumptions"],
        "## Are the targets met?\n",
        _table(targets),
        "## What is found of a planted truth?\n",
        PROSE["planted truths"],
        _table(_scenario_lines(findings)),
        "![Rates](rates.svg)\n",
        "## What can a sixth of the grid do?\n",
        PROSE["design efficiency"],
        _table(_efficiency_lines(findings)),
        "## What of smaller effects?\n",
        PROSE["smaller effects"],
        "![Agreement and undecided verdicts](sizes.svg)\n",
        _table(_size_lines(findings)),
    )
    return "\n".join(parts)


def _recorded(findings: Findings) -> str:
    """Return which code ran where, when, and for how long; a paragraph."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("biaswise", *PACKAGES))
    machine = f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}"
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    when = f"**Recorded in** commit {commit() or 'unknown'}, {today}"
    return fill(f"{when}; {machine}, {versions}; {findings.seconds:.0f} s.", COLUMNS)


_HEAD = """# Calibration: how often is a verdict right?

Simulated studies whose truth is known, fitted and judged by the code that judges real ones.

{recorded}

**Command.** `biaswise calibrate --studies {studies}`
"""
PROSE = {
    "assumptions": """\
A rate's spread is its 95 % interval (Clopper and Pearson); at a rate of 5 % in 1,000, 1.4 points.

**Unit.** The standard deviation of one training run (of one arm, within a seed). Effects are net of
price.

**Assumptions.** The noise of a real study is in its report; here it is assumed:

- A seed's own level varies by 2, shared by its arms.
- There are 150 validation scenes; three tenths of a run's variance differ from scene to scene.
- A site's gain varies between scenes so that its mean over all of them has a standard deviation of
  0.16 (a gain of 2 that varies by its own size over 150 scenes).
""",
    "planted truths": """\
- *found*: every planted gain PAYS and every planted loss COSTS.
- *all intervals hold*: the printed intervals of all sites together, when the study ends.
- *single intervals*: each site's own 95 % interval after all trials.
- *trials*: on average.
- *look*: an interim analysis.

A collapsed run ends 20 lower than it should; a diverged one without a number. Early stopping ends
the worst quarter of every seed's runs, by a value that correlates 0.8 with the last one.
""",
    "design efficiency": f"""\
Six layers; each has no effect with probability one half, else one of the named size, three of four
positive.

- *agrees*: the PAYS layers are those of the full grid ({GRID.most_trials} trials).
- A study's trainings are some of the grid's own, as if the grid had been completed afterwards. Only
  *{APART.name}* and *{AGAIN.name}* have other trainings and
  other scenes.

Both sides may err: two procedures with up to 2.5 % false PAYS each (half of the 5 % that the rule
allows in both directions) disagree in up to 5 % of the studies even if no gain is ever missed. How
often another full grid agrees with the first is the best that trainings of one's own can reach.

A *screening* trains once with the bias in all layers, with a seed that no trial has, evaluates that
with layers switched off, and ranks them (`order_by` of a rule). Its estimates are assumed to err by
0.7, or by twice that. Holm's procedure then weighs each layer twice as much as
the next.
""",
    "smaller effects": """\
One look at the end, half of the layers with the effect, confidence 0.95.
""",
}
"""Part of the README -> what it says besides numbers, in lines of up to 100 columns."""


def _table(lines: Sequence[Sequence[object]]) -> str:
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    texts.insert(1, ["---"] * len(texts[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in texts)
