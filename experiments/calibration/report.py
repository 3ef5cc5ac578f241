"""What a calibration found, as a README in Markdown, CSV tables and plots."""

import csv
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from textwrap import fill

from experiments.calibration.designs import LEAN, SITES, SMALL
from experiments.calibration.figures import draw_rates, draw_sizes
from experiments.calibration.findings import Findings, criteria
from experiments.calibration.prose import HEAD, PROSE
from pipeline.metrics.versions import commit

PACKAGES = ("numpy", "scipy", "statsmodels")
SHOWN = (
    *("planted", "any false claim", "false PAYS", "false COSTS", "false NO DIFFERENCE", "found"),
    *("single intervals hold", "settled plan worse", "best guess worse", "overrated"),
)
"""Head of the README's tables of planted truths."""
COLUMNS = 100
"""Longest line of prose in the README."""


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write README.md, four CSV tables and two plots; return the README's path."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "scenarios": _scenario_lines(findings),
        "design_efficiency": _efficiency_lines(findings),
        "sizes": _size_lines(findings),
        "power": _power_lines(findings),
    }
    for name, lines in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    draw_rates(findings, folder / "rates.svg")
    draw_sizes(findings, folder / "sizes.svg")
    readme = folder / "README.md"
    readme.write_text(_markdown(findings), encoding="utf-8")
    return readme


EVENTS = (
    *("any false claim", "false PAYS", "false COSTS", "false NO DIFFERENCE", "found"),
    *("settled plan worse", "best guess worse", "all intervals hold", "settled"),
)
_SCENARIO_HEAD = (
    *("planted", "kind", "study", *EVENTS, "single intervals hold", "undecided verdicts"),
    *("best guess overrated", "refused", "trials"),
)
_EFFICIENCY_HEAD = (
    *("study", "trials", "effects", "confidence", "agrees", "false PAYS", "missed PAYS"),
    *("grid false PAYS", "grid missed PAYS", "undecided verdicts"),
)
_SIZE_HEAD = ("effect", "trials", "agrees", "right", "false PAYS", "missed PAYS", "undecided verdicts")
_POWER_HEAD = ("study", "net gain", "computed", "simulated", "low", "high")


def _scenario_lines(findings: Findings) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = [_SCENARIO_HEAD]
    for scenario, tally in findings.scenarios:
        rates: list[object] = [tally.rate(event)[0] for event in EVENTS]
        if not scenario.has_effects:
            rates[EVENTS.index("found")] = ""
        judged = max(tally.studies - tally.refused, 1)
        lines.append(
            (
                *(scenario.name, scenario.kind, scenario.study.name, *rates),
                tally.covered / tally.intervals if tally.intervals else "",
                tally.undecided / max(tally.verdicts, 1),
                *(tally.overrated / judged, tally.refused / tally.studies, tally.trials / judged),
            )
        )
    return lines


def _shown_scenarios(findings: Findings, sites: int) -> list[tuple[object, ...]]:
    """Return the lines of the README's table of studies of so many layers; per cent."""
    lines: list[tuple[object, ...]] = [SHOWN]
    for scenario, tally in findings.scenarios:
        if len(scenario.study.sites) != sites:
            continue
        _, low, high = tally.rate("any false claim")
        found = f"{100 * tally.rate('found')[0]:.1f}" if scenario.has_effects else ""
        covered = f"{100 * tally.covered / tally.intervals:.1f}" if tally.intervals else ""
        rates = [f"{100 * tally.rate(event)[0]:.1f}" for event in EVENTS]
        claims = f"{rates[0]} ({100 * low:.1f}-{100 * high:.1f})"
        judged = max(tally.studies - tally.refused, 1)
        overrated = f"{tally.overrated / judged:+.2f}"
        lines.append((scenario.name, claims, *rates[1:4], found, covered, *rates[5:7], overrated))
    return lines


def _power_lines(findings: Findings) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = [_POWER_HEAD]
    lines += [(one.design, one.gain, one.computed, *one.simulated) for one in findings.foretold]
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
        HEAD.format(recorded=_recorded(findings), studies=findings.studies),
        PROSE["assumptions"],
        "## Are the targets met?\n",
        _table(targets),
        "## What is found of a planted truth?\n",
        PROSE["planted truths"],
        "### Three layers, all combinations\n",
        _table(_shown_scenarios(findings, len(SMALL.sites))),
        "### Six layers\n",
        _table(_shown_scenarios(findings, len(SITES))),
        "![Rates](rates.svg)\n",
        "## Does `study power` foretell this?\n",
        PROSE["power"],
        _table(_power_lines(findings)),
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


def _table(lines: Sequence[Sequence[object]]) -> str:
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    texts.insert(1, ["---"] * len(texts[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in texts)
