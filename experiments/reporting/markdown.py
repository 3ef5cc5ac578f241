"""The report as Markdown, and what the page shares with it: tables as they are printed, marks, commands."""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from experiments.analysis.decide import Evidence
from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED, Verdict
from experiments.reporting.summary import Summary
from experiments.reporting.tables.base import Table, condition_table, settling, signed, spell, term_label
from experiments.reporting.tables.design import shown_plans
from experiments.reporting.tables.kernels import kernel_table
from experiments.reporting.wording import advise, fixed_price, reading
from pipeline.printable import printable

MARKS = {PAYS: "▲", COSTS: "▼", NO_DIFFERENCE: "=", UNDECIDED: "?"}
"""The sign of a verdict, for readers who do not see its colour."""


VERDICT_HEADS = ("layer", "verdict", "gain", "slow-down", "price", "net gain", "pays up to", "to settle it")


def verdict_cells(verdict: Verdict, evidence: Evidence) -> tuple[str, ...]:
    """Return the texts of one line of the verdict table, under ``VERDICT_HEADS``."""
    return (
        term_label(verdict, evidence),
        f"{MARKS[verdict.verdict]} {verdict.label}",
        f"{signed(verdict.effect)} [{signed(verdict.low)}, {signed(verdict.high)}]",
        if_priced(f"{signed(verdict.slowdown_percent, 1)} %", verdict),
        if_priced(signed(verdict.price), verdict),
        if_priced(f"{signed(verdict.net)} [{signed(verdict.net_low)}, {signed(verdict.net_high)}]", verdict),
        short_break_even(verdict),
        settling(verdict, evidence),
    )


def if_priced(text: str, verdict: Verdict) -> str:
    """Return a text that needs a price; a dash without one."""
    return text if math.isfinite(verdict.net) else "-"


def short_break_even(verdict: Verdict) -> str:
    """Return the break-even rate with its interval for a cell, points per 1 % of step time."""
    rate = verdict.break_even
    if rate is None or math.isnan(rate.rate):
        return "-"
    return f"{_bound(rate.rate)} [{_bound(rate.low)}, {_bound(rate.high)}]"


def _bound(rate: float) -> str:
    return "any" if math.isinf(rate) else f"{rate:.2f}"


def plan_lines(summary: Summary) -> list[str]:
    """Return the lines about plans and the fixed price; none without evidence."""
    if summary.evidence is None:
        return []
    advice = advise(summary.advice, summary.evidence, summary.confirmed) if summary.advice else ()
    return [line for line in (*advice, fixed_price(summary.evidence)) if line]


def to_markdown(summary: Summary) -> str:
    """Return the report as Markdown: the answer first; figures are on the HTML page only."""
    parts = [f"# Study {_line(summary.record.name)}", f"**{_line(summary.answer)}**"]
    parts += ["\n".join(f"- {_line(note)}" for note in summary.notes)] if summary.notes else []
    parts += [_line(summary.record.question)] if summary.record.question else []
    parts += [_line(summary.record.rule)] if summary.record.rule else []
    if summary.evidence is not None:
        evidence = summary.evidence
        lines = [verdict_cells(verdict, evidence) for verdict in evidence.verdicts]
        parts += ["## Verdict per layer", _markdown_table(VERDICT_HEADS, lines), reading(evidence)]
        parts += ["## The plan to use", *plan_lines(summary)] if summary.advice else plan_lines(summary)
        parts += [f"Plan: `{summary.advice.plan}`"] if summary.advice else []
    for table in shown_tables(summary):
        parts += [f"## {table.title}", _markdown_table(table.columns, table.lines)]
    parts += ["## Reproduce it", f"```\n{commands(summary)}\n```"]
    return "\n\n".join(parts) + "\n"


def shown_tables(summary: Summary) -> list[Table]:
    """Return the tables as they are printed, without that of the verdicts, which is printed by itself.

    Effects, kernels and plans have fewer lines here than in their CSV files.
    """
    shown = []
    for table in summary.tables:
        lines = tuple(tuple(map(spell, line)) for line in table.lines)
        columns = table.columns
        if table.name == "effects" and summary.evidence is not None:
            columns, lines = condition_table(summary.evidence)
        if table.name == "kernels":
            columns, lines = kernel_table(table)
        if table.name == "plans" and summary.evidence is not None:
            kept = shown_plans(table, summary.evidence.rule.baseline)
            lines = tuple(tuple(map(spell, line)) for line in kept)
        if table.name != "verdicts" and lines:
            shown.append(replace(table, columns=columns, lines=lines))
    return shown


def commands(summary: Summary) -> str:
    """Return the commands that give these numbers again."""
    commits = sorted({row.commit.rstrip("+") for row in summary.rows} - {""})
    known = len(commits) == 1 and re.fullmatch("[0-9a-f]{7,40}", commits[0])
    checkout = [f"git checkout {commits[0]}"] if known else []
    record = summary.record
    name, *overridden = (_word(word) for word in (record.file or record.name, *record.overridden))
    run = " ".join(["biaswise study run", name, *overridden])
    return "\n".join([*checkout, run, f"biaswise study report {name}"])


def _word(text: str) -> str:
    """Return a word of ``study.json`` as one word of a shell, on one line, without a backtick or a tag."""
    return shlex.quote(" ".join(re.sub("[`<]", "", printable(text)).split()))


def _markdown_table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---"] * len(columns)
    escaped = [[_line(cell).replace("|", r"\|") for cell in line] for line in (columns, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _line(text: object) -> str:
    """Return text of rows or ``study.json`` as one line that holds no HTML, link, picture or code block."""
    one = printable(str(text)).replace("\n", " ").replace("```", "")
    return one.replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:")
