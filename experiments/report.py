"""Report: what a study found, for a terminal, as Markdown, as CSV tables and as one HTML page.

Everything is made from the rows and ``study.json``. Rows that support no verdict still give a report:
it says why at the top, and shows the trials.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.decide import COSTS, MOST_FURTHER_SEEDS, PAYS, UNDECIDED, Evidence, Verdict
from experiments.figures import accuracy_speed, forest, learned_scale
from experiments.rule import Rule
from experiments.sheets import MINUS, Sheet, condition_table, kernel_table, settling, signed
from experiments.summary import Summary, summarize

MARKS = {PAYS: "▲", COSTS: "▼", UNDECIDED: "?"}
"""A verdict's sign, so that colour alone never carries it."""
RICH_STYLES = {PAYS: "bold green", COSTS: "bold red", UNDECIDED: "yellow"}


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        summary: what it says.
        html: the page.
        markdown: the same in Markdown.
        tables: the CSV files.
    """

    summary: Summary
    html: Path
    markdown: Path
    tables: tuple[Path, ...]


def write_report(study_folder: Path) -> Report:
    """Judge a study and write ``report.html``, ``report.md`` and a CSV file per table into its folder.

    Raises:
        ReportError: the folder is no study, or has no rows.
        RowsError: a rows file is broken elsewhere than in its last line.
        OSError: the folder cannot be written.
    """
    summary = summarize(study_folder)
    tables: list[Path] = []
    for stale in ("verdicts", "effects"):  # of an earlier report, when there was evidence
        (study_folder / f"{stale}.csv").unlink(missing_ok=True)
    for sheet in summary.sheets:
        tables.append(study_folder / f"{sheet.name}.csv")
        tables[-1].write_text(to_csv(sheet), encoding="utf-8", newline="")
    html, markdown = study_folder / "report.html", study_folder / "report.md"
    html.write_text(to_html(summary), encoding="utf-8")
    markdown.write_text(to_markdown(summary), encoding="utf-8")
    return Report(summary, html, markdown, tuple(tables))


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the verdicts, or why there are none, and where the report lies."""
    console = console or Console()
    summary = report.summary
    if summary.evidence is not None:
        console.print(_terminal_table(summary.evidence))
    console.print(summary.answer, style="bold", markup=False)
    for note in summary.notes:
        console.print(f"! {note}", markup=False)
    console.print(f"Report: {report.html}", markup=False, soft_wrap=True)


def _terminal_table(evidence: Evidence) -> RichTable:
    """Build the verdict table for 80 columns: intervals as half-widths, further seeds as a number."""
    unit = f"points of {evidence.rule.metric} ({evidence.rule.condition})"
    table = RichTable(title=unit, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for head in ("layer", "verdict", "gain", "price", "net of price", "more seeds"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("layer", "verdict") else "right")
    for v in evidence.verdicts:
        table.add_row(
            v.site,
            Text(f"{MARKS[v.verdict]} {v.verdict}", style=RICH_STYLES[v.verdict]),
            f"{signed(v.effect)} ± {v.high - v.effect:.2f}",
            signed(v.price),
            f"{signed(v.net)} ± {v.net_high - v.net:.2f}",
            f"over {MOST_FURTHER_SEEDS}" if v.further_trials is None else str(v.further_trials or ""),
        )
    return table


VERDICT_HEADS = ("layer", "verdict", "gain", "slow-down", "price", "net", "to settle it")


def verdict_cells(verdict: Verdict, evidence: Evidence) -> tuple[str, ...]:
    """Return the texts of one line of the verdict table, under ``VERDICT_HEADS``."""
    return (
        verdict.site,
        f"{MARKS[verdict.verdict]} {verdict.verdict}",
        f"{signed(verdict.effect)} [{signed(verdict.low)}, {signed(verdict.high)}]",
        f"{signed(verdict.slowdown_percent, 1)} %",
        signed(verdict.price),
        f"{signed(verdict.net)} [{signed(verdict.net_low)}, {signed(verdict.net_high)}]",
        settling(verdict.further_trials, evidence.table.num_arms),
    )


def to_csv(sheet: Sheet) -> str:
    """Write a sheet as CSV, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(sheet.columns)
    writer.writerows(["" if cell is None else cell for cell in line] for line in sheet.lines)
    return buffer.getvalue()


def to_markdown(summary: Summary) -> str:
    """Write the report as Markdown: the answer first, the figures left to the HTML page."""
    parts = [f"# Study {summary.record.name}", f"**{summary.answer}**"]
    parts += [summary.record.question] if summary.record.question else []
    parts += [str(summary.record.rule)] if summary.record.rule else []
    parts += ["\n".join(f"- {note}" for note in summary.notes)] if summary.notes else []
    if summary.evidence is not None:
        evidence = summary.evidence
        lines = [verdict_cells(verdict, evidence) for verdict in evidence.verdicts]
        parts += ["## Verdict per layer", _markdown_table(VERDICT_HEADS, lines), _reading(evidence)]
    for sheet in shown_sheets(summary):
        parts += [f"## {sheet.title}", _markdown_table(sheet.columns, sheet.lines)]
    parts += ["## Reproduce it", f"```\n{commands(summary)}\n```"]
    return "\n\n".join(parts) + "\n"


def to_html(summary: Summary) -> str:
    """Write the report as one page that loads nothing: style and figures are inside, there is no script."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        evidence=summary.evidence,
        figures=_figures(summary),
        tables=[_page_table(sheet) for sheet in shown_sheets(summary)],
        commands=commands(summary),
        marks=MARKS,
        signed=signed,
        settling=settling,
    )


def shown_sheets(summary: Summary) -> list[Sheet]:
    """Return the sheets as printed, effects and kernels folded; the verdicts have their own table."""
    shown = []
    for sheet in summary.sheets:
        lines = tuple(tuple(map(spell, line)) for line in sheet.lines)
        columns = sheet.columns
        if sheet.name == "effects" and summary.evidence is not None:
            columns, lines = condition_table(summary.evidence)
        if sheet.name == "kernels":
            columns, lines = kernel_table(sheet)
        if sheet.name != "verdicts" and lines:
            shown.append(replace(sheet, columns=columns, lines=lines))
    return shown


def commands(summary: Summary) -> str:
    """Return the commands that give these numbers again."""
    commits = sorted({row.commit.rstrip("+") for row in summary.rows} - {""})
    checkout = [f"git checkout {commits[0]}"] if len(commits) == 1 else []
    name = summary.record.name
    return "\n".join([*checkout, f"biaswise study run {name}", f"biaswise report {name}"])


def spell(cell: str | float | int | None) -> str:
    """Write a cell for people: floats with two decimals, a missing value as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.2f}".replace("-", MINUS)
    return str(cell)


def _reading(evidence: Evidence) -> str:
    return (
        f"Points of {evidence.rule.metric} ({evidence.rule.condition}); net is gain minus price, with the "
        f"noise of both. One trial's noise is {evidence.noise:.2f} points, estimated with "
        f"{evidence.residual_df} degrees of freedom."
    )


def _markdown_table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---"] * len(columns)
    escaped = [[str(cell).replace("|", r"\|") for cell in line] for line in (columns, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _page_table(sheet: Sheet) -> dict[str, Any]:
    cells = zip(*sheet.lines, strict=True)
    numeric = {i for i, column in enumerate(cells) if all(_NUMBER.fullmatch(str(cell)) for cell in column)}
    return {**vars(sheet), "numeric": numeric}


_NUMBER = re.compile(rf"[+{MINUS}]?[\d.]+( .*)?|-")


def _figures(summary: Summary) -> list[dict[str, Any]]:
    rule = summary.record.rule or Rule()
    drawn = {
        "speed": accuracy_speed(summary.rows, rule),
        "forest": forest(summary.evidence) if summary.evidence else "",
        "scale": learned_scale(summary.rows, rule),
    }
    return [{"name": name, "svg": Markup(svg), **_LEGENDS[name]} for name, svg in drawn.items() if svg]


_LEGENDS = {
    "speed": {
        "title": "Accuracy and speed of every plan",
        "alt": "Accuracy against training throughput, a point per plan; the table of trials has the numbers",
        "caption": "A disc is the mean of a plan, named by the layers that have the bias; its dots are the "
        "seeds. Plans above the dashed line are worth their price.",
    },
    "forest": {
        "title": "Gain per layer",
        "alt": "Gain per layer and sensor condition with intervals; the table below has the numbers",
        "caption": "Thick: the condition that decides; the upright mark is the price. Thin: the other sensor "
        "conditions, to look at; no verdict is drawn from them.",
    },
    "scale": {
        "title": "The learned bias scale",
        "alt": "bias_scale over the steps of training, a line per trial",
        "caption": "One factor is shared by all layers that have the bias. Thin: a trial. Bold: the mean of "
        "the trials with equally many such layers.",
    },
}
