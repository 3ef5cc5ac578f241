"""How figures are drawn: as SVG for the report's page, and as PNG for MLflow.

A figure is drawn with a palette. The palette of the page holds placeholders that are replaced by CSS
variables, so one figure fits a light and a dark page. Text stays text: it is small and can be searched. A
figure has the width of a phone's column, so that it is legible there; wide screens enlarge it.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.verdicts import COSTS, NO_DIFFERENCE, PAYS, UNDECIDED

WIDTH = 4.9  # inches of 72 units: 353 units, the text column of a phone that is 375 px wide
PNG_DPI = 200  # 980 pixels wide: sharp on a phone of three device pixels a CSS pixel


@dataclass(frozen=True)
class Palette:
    """The colours of a figure. Blue, green and orange of one lightness are distinct for the colour-blind.

    Attributes:
        ink, faint, accent: of text and axes, of the grid, of what matters.
        pays, costs, undecided: of verdicts; of gains and losses, too.
        page: background.
    """

    ink: str
    faint: str
    accent: str
    pays: str
    costs: str
    undecided: str
    page: str

    def verdict(self, verdict: str) -> str:
        """Return the colour of a verdict."""
        colours = {PAYS: self.pays, COSTS: self.costs, NO_DIFFERENCE: self.accent, UNDECIDED: self.undecided}
        return colours[verdict]


ON_PAGE = Palette(*(f"#{number:06d}" for number in range(1, 8)))
"""Placeholders; ``to_svg`` replaces them by the page's variables, which have the names of the fields."""
ON_PAPER = Palette("#1c2126", "#d5dadf", "#1f66b0", "#0c7a4d", "#b3400e", "#6a6f78", "#ffffff")
"""The light colours of the page."""


@dataclass(frozen=True)
class Drawing:
    """A figure that has not been drawn yet.

    Attributes:
        name: stem of its file, and prefix of its ids on the page.
        title: what it shows.
        alt: text for readers who cannot see it; it says where the numbers are.
        caption: how to read it.
        height: inches.
        paint: draws it on an empty figure and its axes, in a palette.
    """

    name: str
    title: str
    alt: str
    caption: str
    height: float
    paint: Callable[[Figure, Axes, Palette], None]


@contextmanager
def _painted(drawing: Drawing, palette: Palette) -> Iterator[Figure]:
    """Draw, and keep the style until the figure is saved: matplotlib draws ticks only then."""
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": drawing.name,
        "font.size": 10.5,
        "axes.labelsize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.linewidth": 0.6,
        "grid.color": palette.faint,
        "axes.edgecolor": palette.faint,
        "axes.labelcolor": palette.ink,
        "xtick.color": palette.faint,
        "ytick.color": palette.faint,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "text.color": palette.ink,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH, drawing.height), layout="constrained")
        drawing.paint(figure, figure.add_subplot(), palette)
        yield figure


def label_points(
    figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]], others: Sequence[Any] = ()
) -> None:
    """Write each name at one of eight places around its point: where it covers the fewest points and names.

    Args:
        figure: the figure, complete except for the names.
        axes: where the points are.
        points: name -> x and y in data.
        others: further points (x, y) that should stay free.
    """
    figure.canvas.draw()
    centres = {name: axes.transData.transform(point) for name, point in points.items()}
    free = [*centres.values(), *(axes.transData.transform(point) for point in others)]
    boxes: list[tuple[float, float, float, float]] = [(x - 6, y - 6, x + 6, y + 6) for x, y in free]
    frame = axes.get_window_extent()
    unit = figure.dpi / 72
    for name, (x, y) in centres.items():
        width, height = 5.6 * len(name) * unit, 12 * unit  # units of a character at 10.5
        places = [
            (x + dx * (9 + width / 2), y + dy * (8 + height / 2))
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
        ]
        candidates = [(a - width / 2, b - height / 2, a + width / 2, b + height / 2) for a, b in places]
        costs = [
            sum(_overlap(box, other) for other in boxes) + 1e3 * (not _within(box, frame.extents))
            for box in candidates
        ]
        best = costs.index(min(costs))
        boxes.append(candidates[best])
        x_text, y_text = axes.transData.inverted().transform(places[best])
        axes.text(x_text, y_text, name, ha="center", va="center", fontsize=10)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _within(box: tuple[float, ...], frame: Sequence[float]) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def to_png(drawing: Drawing) -> bytes:
    """Return the figure as PNG on white."""
    buffer = io.BytesIO()
    with _painted(drawing, ON_PAPER) as figure:
        figure.savefig(
            buffer, format="png", dpi=PNG_DPI, facecolor=ON_PAPER.page, metadata={"Software": None}
        )
    return buffer.getvalue()


def to_svg(drawing: Drawing) -> str:
    """Return the figure as an ``<svg>`` element with the page's colours and font, and ids of its own."""
    buffer, name = io.StringIO(), drawing.name
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _painted(drawing, ON_PAGE) as figure:
        figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in zip(astuple(ON_PAGE), Palette.__dataclass_fields__, strict=True):
        text = text.replace(stand_in, f"var(--{variable})")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: var(--font)", text)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r"(?:xlink:)?href=\"#", f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"<[^>]*>", _two_decimals, text)  # in tags, not between them: there stand the labels
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)


def _two_decimals(tag: re.Match[str]) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag.group())
