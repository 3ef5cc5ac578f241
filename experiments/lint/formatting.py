"""Print the report of lint for people, or as JSON for programs."""

import json
import os
import sys
import textwrap
from pathlib import Path

from rich.table import Table
from rich.text import Text

from experiments.lint.check import LintReport
from experiments.lint.finding import Finding
from experiments.terminal import Terminal
from pipeline.printable import printable


def print_report(report: LintReport, fixed: list[Finding], console: Terminal) -> None:
    """Print the table of sites, then the fixed findings, the remaining findings and the notes.

    Args:
        report: the report on the config after the fixes.
        fixed: findings that the fixes solved.
        console: the console to print on.
    """
    table = Table("site", "receives", "computed by", "form", box=None, pad_edge=False)
    for line in report.sites:
        style = "red" if line.wrong else None
        table.add_row(line.site, line.receives, line.impl, line.form.lower().replace("_", " "), style=style)
    if report.sites:
        console.print(table)
    for word, style, findings in (
        ("fixed", "green", fixed),
        ("wrong", "red", report.wrong),
        ("note", "yellow", report.notes),
    ):
        for finding in findings:
            _print_finding(finding, word, style, console)
    counts = [f"{len(fixed)} fixed"] if fixed else []
    counts += [_count(len(report.wrong), "finding"), _count(len(report.notes), "note")]
    console.print(f"\n{', '.join(counts)} in {shown(report.config)}", highlight=False, soft_wrap=True)


def _print_finding(finding: Finding, word: str, style: str, console: Terminal) -> None:
    where = f"{shown(finding.place.file)}:{finding.place.line}"
    head = Text.assemble(
        "\n",
        (word, style),
        " ",
        (printable(where), "bold"),
        printable(f" {finding.rule}{_sites(finding.sites)}"),
    )
    console.print(head, highlight=False, soft_wrap=True)
    # In a pipe, a sentence stays on one line, because that is easier to search.
    width = console.width if console.is_terminal else sys.maxsize
    for text in (f"{finding.sentence}.", "→ removed" if word == "fixed" else f"→ {finding.advice}"):
        lines = textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ")
        console.print(lines, highlight=False, soft_wrap=True)


def _sites(sites: tuple[str, ...]) -> str:
    """Return `` at SITE``, or the first and last name with the count if there are several sites."""
    if not sites:
        return ""
    return f" at {sites[0]}" if len(sites) == 1 else f" at {sites[0]} … {sites[-1]} ({len(sites)} sites)"


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


def as_json(report: LintReport, fixed: list[Finding]) -> str:
    """Return the report as JSON, with findings and notes as separate lists.

    The arguments are those of ``print_report``.
    """
    return json.dumps(
        {
            "config": str(report.config),
            "device": report.device,
            "sites": [vars(line) for line in report.sites],
            "findings": [_plain(finding) for finding in report.wrong],
            "notes": [_plain(finding) for finding in report.notes],
            "fixed": [_plain(finding) for finding in fixed],
        },
        indent=2,
    )


def _plain(finding: Finding) -> dict[str, object]:
    return {
        "rule": finding.rule,
        "file": str(finding.place.file),
        "line": finding.place.line,
        "column": finding.place.column,
        "key": ".".join(map(str, finding.key)),
        "sites": list(finding.sites),
        "sentence": finding.sentence,
        "advice": finding.advice,
    }


def shown(file: Path) -> str:
    """Return a path relative to the working directory if it is inside, else the path as given."""
    path = os.path.relpath(file)
    return str(file) if path.startswith("..") else path
