"""Summary of a benchmark for the ``rects`` kernel: ratios to other implementations, linearity of growth."""

from collections.abc import Callable, Sequence

import numpy as np

from operators.bench.rows import BenchRow

Floor = Callable[[BenchRow], float | None]


def ratios(rows: Sequence[BenchRow]) -> str:
    """Return a table, per shape of the decoder, of the cost of ``rects`` over other implementations.

    Empty without rows of ``rects``.
    """
    shapes = dict.fromkeys(row.shape for row in rows if row.suite == "shapes" and row.impl == "rects")
    lines = {name: [measure(_Shape(rows, shape)) for shape in shapes] for name, measure in _RATIOS.items()}
    if not any(value for values in lines.values() for value in values):
        return ""
    head = [
        "### `rects` over its peers",
        "",
        f"| | {' | '.join(shapes)} |",
        "|---" + "|---:" * len(shapes) + "|",
    ]
    return "\n".join(head + [f"| {name} | {' | '.join(values)} |" for name, values in lines.items()])


class _Shape:
    """The rows of one shape, and ratios between them."""

    def __init__(self, rows: Sequence[BenchRow], shape: str) -> None:
        self.rows = [
            row for row in rows if row.suite == "shapes" and row.shape == shape and row.value == row.value
        ]

    def of(self, bias: str, mode: str, metric: str = "latency", impl: str = "") -> list[BenchRow]:
        """Return the rows of a bias, mode and metric, of one implementation or (by default) of all."""
        wanted = (bias, mode, metric)
        return [r for r in self.rows if (r.bias, r.mode, r.metric) == wanted and impl in ("", r.impl)]

    def over(self, bias: str, mode: str, peers: list[BenchRow]) -> str:
        """Return the time of ``rects`` over that of the fastest of some peers, and the name of that peer."""
        mine, best = self.of(bias, mode, impl="rects"), min(peers, key=lambda row: row.value, default=None)
        return f"{mine[0].value / best.value:.3g} ({best.impl})" if mine and best else ""

    def dense(self, mode: str) -> list[BenchRow]:
        """Return the times of the window bias by the implementations that take a matrix or a function."""
        return [row for row in self.of("window", mode) if row.impl != "rects"]

    def memory(self, mode: str) -> str:
        """Return the peak memory of ``rects`` over that of the fastest dense implementation."""
        best = min(self.dense(mode), key=lambda row: row.value, default=None)
        if best is None:
            return ""
        both = [self.of("window", mode, "peak_extra", impl) for impl in ("rects", best.impl)]
        if not all(both):
            return ""
        mine, theirs = (rows[0].value for rows in both)
        return f"{mine:.0f} / {theirs:.0f} MiB = {mine / theirs:.3f}"


_RATIOS: dict[str, Callable[[_Shape], str]] = {
    "window, forward / best without bias": lambda s: s.over("window", "forward", s.of("none", "forward")),
    "window, forward / `sdpa_flash` without bias": lambda s: s.over(
        "window", "forward", s.of("none", "forward", impl="sdpa_flash")
    ),
    "window, forward + backward / best without bias": lambda s: s.over(
        "window", "forward_backward", s.of("none", "forward_backward")
    ),
    "window, forward + backward / best other with it": lambda s: s.over(
        "window", "forward_backward", s.dense("forward_backward")
    ),
    "peak memory beyond inputs and gradients": lambda s: s.memory("forward_backward"),
    "local mask, forward / best without bias": lambda s: s.over("local", "forward", s.of("none", "forward")),
}


def straightness(rows: Sequence[BenchRow], axis: str, floor: Floor) -> str:
    """Fit a straight line to each growth curve, and return a table: slope, largest miss, slope of the floor.

    Args:
        rows: rows of the suite ``axis``.
        axis: ``keys`` or ``queries``.
        floor: returns the least time of a row's call in ms, or None.
    """
    unit = 100_000 if axis == "keys" else 1000
    mine = [row for row in rows if row.metric == "latency" and row.value == row.value]
    lines = [
        f"| bias / impl, mode | ms per {unit:,} {axis} | largest miss of the line | floor's slope |",
        "|---|---:|---:|---:|",
    ]
    for bias, impl, mode in dict.fromkeys((row.bias, row.impl, row.mode) for row in mine):
        chosen = [row for row in mine if (row.bias, row.impl, row.mode) == (bias, impl, mode)]
        if len(chosen) < 3:
            continue  # two points always lie on a line
        at, took = np.array([(getattr(row, axis) / unit, row.value) for row in chosen]).T
        slope, start = np.polyfit(at, took, 1)
        miss = np.abs(slope * at + start - took).max() / took.max()
        least = [floor(row) for row in chosen]
        known = [value for value in least if value is not None]
        steep = f"{np.polyfit(at, known, 1)[0]:.3f}" if len(known) == len(chosen) else ""
        name = f"{bias} / {impl}, {mode.replace('_', ' + ')}"
        lines.append(f"| {name} | {slope:.3f} | {100 * miss:.1f} % of the longest | {steep} |")
    return "\n".join(lines) if len(lines) > 2 else ""
