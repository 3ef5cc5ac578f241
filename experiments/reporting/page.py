"""The report as one HTML page with figures; imports matplotlib, which takes most of a second."""

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.recipes.decision_rule import DecisionRule
from experiments.reporting.figures.effects import forest, heat_map
from experiments.reporting.figures.plans import accuracy_speed, learned_scale
from experiments.reporting.figures.screening import screening_figure
from experiments.reporting.figures.style import Drawing, to_png, to_svg
from experiments.reporting.markdown import VERDICT_HEADS, commands, plan_lines, shown_tables, verdict_cells
from experiments.reporting.study_record import ReportError
from experiments.reporting.summary import Summary
from experiments.reporting.tables.base import MINUS, Table, spell_levels
from experiments.reporting.wording import reading
from pipeline.storage.files import atomic_write


def write_page(summary: Summary, path: Path) -> None:
    """Write the page, and beside it a PNG file per figure into ``figures``.

    Raises:
        ReportError: ``figures`` is a link, which could lead to any folder.
    """
    figures = path.parent / "figures"
    if figures.is_symlink():
        raise ReportError(f"{figures}: is a link, expected a folder; remove it")
    figures.mkdir(exist_ok=True)
    for drawing in drawings(summary):
        atomic_write(figures / f"{drawing.name}.png", to_png(drawing))
    if summary.scene:
        atomic_write(figures / "scene.png", summary.scene)
    atomic_write(path, to_html(summary))


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
        tables=[_page_table(table) for table in shown_tables(summary)],
        commands=commands(summary),
        heads=[head.capitalize() for head in VERDICT_HEADS],
        cells=verdict_cells,
    )


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
