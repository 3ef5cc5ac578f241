"""The report of a study: for a terminal, as Markdown, as CSV tables and as one HTML page.

It is made from the rows and ``study.json`` alone. If the rows support no verdict, the report says why at
the top and shows the trials.
"""

import base64
import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.analysis.decide import Evidence
from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED, Verdict
from experiments.recipes.decision_rule import DecisionRule
from experiments.reporting.figures.effects import forest, heat_map
from experiments.reporting.figures.plans import accuracy_speed, learned_scale
from experiments.reporting.figures.screening import screening_figure
from experiments.reporting.figures.style import Drawing, to_png, to_svg
from experiments.reporting.summary import Summary, summarize
from experiments.reporting.tables.base import (
    MINUS,
    Table,
    condition_table,
    settling,
    signed,
    spell,
    spell_levels,
    term_label,
)
from experiments.reporting.tables.design import shown_plans
from experiments.reporting.tables.kernels import kernel_table
from experiments.reporting.wording import advise, fixed_price, reading
from pipeline.config.plan import Plan

CONFIG = "recommended.py"
"""The recommended plan as an mmengine config."""
MARKS = {PAYS: "▲", COSTS: "▼", NO_DIFFERENCE: "=", UNDECIDED: "?"}
"""The sign of a verdict, for readers who do not see its colour."""
RICH_STYLES = {PAYS: "bold green", COSTS: "bold red", NO_DIFFERENCE: "bold", UNDECIDED: "yellow"}


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        summary: its content.
        html: the page.
        markdown: the same in Markdown.
        tables: the CSV files.
    """

    summary: Summary
    html: Path
    markdown: Path
    tables: tuple[Path, ...]


def write_report(study_folder: Path, config_of: Callable[[Plan], str] | None = None) -> Report:
    """Judge a study and write the report into its folder.

    Writes ``report.html``, ``report.md``, a CSV file per table, a PNG file per figure into ``figures``, and
    the recommended plan as a config, ``recommended.py``.

    Args:
        study_folder: the study.
        config_of: returns a whole plan as an mmengine config, or raises ValueError; None writes no config.

    Returns:
        The summary and the files.

    Raises:
        ReportError: the folder is no study, or has no rows.
        RowsError: a rows file is broken elsewhere than in its last line.
        OSError: the folder cannot be written.
    """
    summary = summarize(study_folder)
    if summary.advice is not None and config_of is not None:
        summary = _with_config(summary, summary.advice.plan, config_of)
    for stale in (*study_folder.glob("*.csv"), *study_folder.glob("figures/*.png"), study_folder / CONFIG):
        stale.unlink(missing_ok=True)  # of an earlier report, when there was evidence
    tables: list[Path] = []
    for table in summary.tables:
        tables.append(study_folder / f"{table.name}.csv")
        tables[-1].write_text(to_csv(table), encoding="utf-8", newline="")
    (study_folder / "figures").mkdir(exist_ok=True)
    for drawing in drawings(summary):
        (study_folder / "figures" / f"{drawing.name}.png").write_bytes(to_png(drawing))
    if summary.scene:
        (study_folder / "figures" / "scene.png").write_bytes(summary.scene)
    if summary.config:
        (study_folder / CONFIG).write_text(summary.config, encoding="utf-8")
    html, markdown = study_folder / "report.html", study_folder / "report.md"
    html.write_text(to_html(summary), encoding="utf-8")
    markdown.write_text(to_markdown(summary), encoding="utf-8")
    return Report(summary, html, markdown, tuple(tables))


def _with_config(summary: Summary, plan: Plan, config_of: Callable[[Plan], str]) -> Summary:
    """Add the recommended plan as a config, or a note why it cannot be printed."""
    try:
        return replace(summary, config=config_of(plan))
    except ValueError as error:  # of a config that is gone or has changed: the report does not depend on it
        return replace(summary, notes=(*summary.notes, f"The plan is not printed as a config: {error}."))


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the verdicts, or why there are none, and the path of the report."""
    console = console or Console()
    summary = report.summary
    if summary.evidence is not None:
        console.print(_terminal_table(summary.evidence))
    console.print(summary.answer, style="bold", markup=False)
    for line in plan_lines(summary):
        console.print(line, markup=False)
    for note in summary.notes:
        console.print(f"! {note}", markup=False)
    console.print(f"Report: {report.html}", markup=False, soft_wrap=True)


def _terminal_table(evidence: Evidence) -> RichTable:
    """Build the verdict table for 80 columns: intervals as half-widths."""
    unit = f"points of {evidence.rule.metric} ({evidence.rule.condition})"
    table = RichTable(title=unit, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for head in ("layer", "verdict", "gain", "price", "net gain", "noise"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("layer", "verdict") else "right")
    for v in evidence.verdicts:
        table.add_row(
            term_label(v, evidence),
            Text(f"{MARKS[v.verdict]} {v.verdict}", style=RICH_STYLES[v.verdict]),
            f"{signed(v.effect)} ± {v.high - v.effect:.2f}",
            _known(signed(v.price), v),
            _known(f"{signed(v.net)} ± {v.net_high - v.net:.2f}", v),
            v.to_settle.largest if v.to_settle else "",
        )
    return table


def _known(text: str, verdict: Verdict) -> str:
    """Return a text that needs a price; a dash without one."""
    return text if math.isfinite(verdict.net) else "-"


VERDICT_HEADS = ("layer", "verdict", "gain", "slow-down", "price", "net gain", "pays up to", "to settle it")


def verdict_cells(verdict: Verdict, evidence: Evidence) -> tuple[str, ...]:
    """Return the texts of one line of the verdict table, under ``VERDICT_HEADS``."""
    return (
        term_label(verdict, evidence),
        f"{MARKS[verdict.verdict]} {verdict.label}",
        f"{signed(verdict.effect)} [{signed(verdict.low)}, {signed(verdict.high)}]",
        _known(f"{signed(verdict.slowdown_percent, 1)} %", verdict),
        _known(signed(verdict.price), verdict),
        _known(f"{signed(verdict.net)} [{signed(verdict.net_low)}, {signed(verdict.net_high)}]", verdict),
        short_break_even(verdict),
        settling(verdict, evidence),
    )


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


def to_csv(table: Table) -> str:
    """Return a table as CSV, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else cell for cell in line] for line in table.lines)
    return buffer.getvalue()


def to_markdown(summary: Summary) -> str:
    """Return the report as Markdown: the answer first; figures are on the HTML page only."""
    parts = [f"# Study {summary.record.name}", f"**{summary.answer}**"]
    parts += ["\n".join(f"- {note}" for note in summary.notes)] if summary.notes else []
    parts += [summary.record.question] if summary.record.question else []
    parts += [str(summary.record.rule)] if summary.record.rule else []
    if summary.evidence is not None:
        evidence = summary.evidence
        lines = [verdict_cells(verdict, evidence) for verdict in evidence.verdicts]
        parts += ["## Verdict per layer", _markdown_table(VERDICT_HEADS, lines), reading(evidence)]
        parts += ["## The plan to use", *plan_lines(summary)] if summary.advice else plan_lines(summary)
        parts += [f"Plan: `{summary.advice.plan}`"] if summary.advice else []
    parts += (
        ["As an mmengine config:", f"```python\n{summary.config.rstrip()}\n```"] if summary.config else []
    )
    for table in shown_tables(summary):
        parts += [f"## {table.title}", _markdown_table(table.columns, table.lines)]
    parts += ["## Reproduce it", f"```\n{commands(summary)}\n```"]
    return "\n\n".join(parts) + "\n"


def to_html(summary: Summary) -> str:
    """Return the report as one HTML page without script that loads nothing: styles and figures are in it."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        evidence=summary.evidence,
        figures=[(drawing, Markup(to_svg(drawing))) for drawing in drawings(summary)],
        scene=base64.b64encode(summary.scene).decode(),
        advice=plan_lines(summary),
        reading=reading,
        label=term_label,
        tables=[_page_table(table) for table in shown_tables(summary)],
        commands=commands(summary),
        heads=[head.capitalize() for head in VERDICT_HEADS],
        cells=verdict_cells,
    )


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
    checkout = [f"git checkout {commits[0]}"] if len(commits) == 1 else []
    name = summary.record.name
    return "\n".join([*checkout, f"biaswise study run {name}", f"biaswise study report {name}"])


def _markdown_table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---"] * len(columns)
    escaped = [[str(cell).replace("|", r"\|") for cell in line] for line in (columns, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _page_table(table: Table) -> dict[str, Any]:
    cells = zip(*table.lines, strict=True)
    numeric = {i for i, column in enumerate(cells) if all(_NUMBER.fullmatch(str(cell)) for cell in column)}
    return {**vars(table), "numeric": numeric}


_NUMBER = re.compile(rf"[+{MINUS}]?[\d.]+( .*)?|-")


def drawings(summary: Summary) -> list[Drawing]:
    """Return the figures that the rows support."""
    rule, evidence, best = summary.record.rule or DecisionRule(), summary.evidence, ""
    if evidence is not None and summary.advice is not None:
        best = spell_levels(summary.advice.best.levels, evidence.table.sites, evidence.rule)
    candidates = (
        accuracy_speed(summary.rows, rule, best),
        forest(evidence) if evidence else None,
        heat_map(evidence) if evidence else None,
        screening_figure(summary.screened, evidence) if evidence else None,
        learned_scale(summary.rows, rule),
    )
    return [drawing for drawing in candidates if drawing is not None]
