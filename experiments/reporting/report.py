"""The report of a study: for a terminal, as Markdown, as CSV tables and, with figures, as one HTML page.

It is made from the rows and ``study.json`` alone. If the rows support no verdict, the report says why at
the top and shows the trials.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from experiments.analysis.decide import Evidence
from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED
from experiments.reporting.markdown import MARKS, if_priced, plan_lines, to_markdown
from experiments.reporting.summary import Summary, summarize
from experiments.reporting.tables.base import Table, signed, term_label
from experiments.terminal import Terminal
from pipeline.config.plan import Plan
from pipeline.json_files import MAX_BYTES, read_bytes
from pipeline.storage.files import atomic_write

CONFIG = "recommended.py"
"""The recommended plan as an mmengine config."""
RICH_STYLES = {PAYS: "bold green", COSTS: "bold red", NO_DIFFERENCE: "bold", UNDECIDED: "yellow"}


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        summary: its content.
        markdown: ``report.md``.
        tables: the CSV files.
        html: the page with the figures; None if they were not drawn.
        config: the recommended plan as a config; None if it was not printed.
    """

    summary: Summary
    markdown: Path
    tables: tuple[Path, ...]
    html: Path | None
    config: Path | None


def write_report(
    study_folder: Path, config_of: Callable[[Plan], str] | None = None, figures: bool = True
) -> Report:
    """Judge a study and write the report into its folder.

    Writes ``report.md`` and a CSV file per table. What it does not write, page, figures and config of an
    earlier report, stays as long as the tables are the same, and is removed if they are not.

    Args:
        study_folder: the study.
        config_of: returns a whole plan as an mmengine config, or raises ValueError; writes the recommended
            plan as ``recommended.py``.
        figures: also write ``report.html``, and a PNG file per figure into ``figures``.

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
    changed = _write_tables(summary, study_folder)
    html, markdown, config = (study_folder / name for name in ("report.html", "report.md", CONFIG))
    if changed or figures:
        drawn = () if (study_folder / "figures").is_symlink() else study_folder.glob("figures/*.png")
        for stale in (*drawn, html):
            stale.unlink(missing_ok=True)
    if changed or config_of is not None:
        config.unlink(missing_ok=True)
    atomic_write(markdown, to_markdown(summary))
    if summary.config:
        atomic_write(config, summary.config)
    if figures:
        from experiments.reporting.page import write_page  # imports matplotlib

        write_page(summary, html)
    tables = tuple(study_folder / f"{table.name}.csv" for table in summary.tables)
    return Report(summary, markdown, tables, html if figures else None, config if summary.config else None)


def _write_tables(summary: Summary, study_folder: Path) -> bool:
    """Write the CSV files in place of those of an earlier report; return whether they differ from those."""
    tables = {f"{table.name}.csv": to_csv(table).encode() for table in summary.tables}
    found = {path.name: _content(path) for path in study_folder.glob("*.csv")}
    for name in found.keys() - tables.keys():  # of a report that had evidence
        (study_folder / name).unlink()
    for name, content in tables.items():
        atomic_write(study_folder / name, content)
    return found != tables


def _content(path: Path) -> bytes:
    """Return a table of an earlier report; nothing if it is a link, which the new table replaces."""
    return b"" if path.is_symlink() else read_bytes(path, MAX_BYTES)


def _with_config(summary: Summary, plan: Plan, config_of: Callable[[Plan], str]) -> Summary:
    """Add the recommended plan as a config, or a note why it cannot be printed."""
    try:
        return replace(summary, config=config_of(plan))
    except ValueError as error:  # of a config that is gone or has changed: the report does not depend on it
        return replace(summary, notes=(*summary.notes, f"The plan is not printed as a config: {error}."))


def print_report(report: Report, console: Terminal | None = None) -> None:
    """Print the verdicts, or why there are none, and where config and report are."""
    console = console or Terminal()
    summary = report.summary
    if summary.evidence is not None:
        console.print(_terminal_table(summary.evidence))
    console.print(summary.answer, style="bold")
    for line in plan_lines(summary):
        console.print(line)
    for note in summary.notes:
        console.print(f"! {note}")
    if report.config is not None:
        console.print(f"The plan as a config: {report.config}", soft_wrap=True)
    console.print(f"Report: {report.html or report.markdown}", soft_wrap=True)


def _terminal_table(evidence: Evidence) -> RichTable:
    """Build the verdict table for 80 columns: intervals as half-widths, and whose noise is the largest."""
    unit = f"points of {evidence.rule.metric} ({evidence.rule.condition})"
    table = RichTable(title=unit, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for head in ("layer", "verdict", "gain", "price", "net gain", "noise"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("layer", "verdict") else "right")
    for v in evidence.verdicts:
        table.add_row(
            term_label(v, evidence),
            Text(f"{MARKS[v.verdict]} {v.verdict}", style=RICH_STYLES[v.verdict]),
            f"{signed(v.effect)} ± {v.high - v.effect:.2f}",
            if_priced(signed(v.price), v),
            if_priced(f"{signed(v.net)} ± {v.net_high - v.net:.2f}", v),
            v.to_settle.largest if v.to_settle else "",
        )
    return table


def to_csv(table: Table) -> str:
    """Return a table as CSV, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else cell for cell in line] for line in table.lines)
    return buffer.getvalue()
