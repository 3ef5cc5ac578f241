"""The report of the operator benchmark: Markdown tables and plots, computed from rows.

Absolute times hold for one GPU. The ratios carry over: to the fastest implementation without a bias in the
same run, and to the floor. The floor is the time that the matrix products need at the chip's rate, or the
exponentials if they take longer.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from operators.bench.rows import BenchRow
from operators.bench.summary import ratios, straightness

_H200_FLOPS = 790e12  # bf16 matrix products measured on an H200 (facts of the attention study)
_H200_EXPS = 132 * 16 * 1.83e9  # exponentials a second: 16 a clock on each of 132 multiprocessors at 1.83 GHz
_PRODUCTS = {"forward": 2, "forward_backward": 7}  # products of Q x K x D: 2 forward, 5 more backward
_EXPS = {"forward": 1, "forward_backward": 2}  # the backward pass recomputes the probabilities
_STYLES = {"rects": "o-", "lowrank": "s-.", "sdpa_cudnn": "v--", "sdpa_efficient": "^:"}
_COLOURS = {
    "none": "#7a869a",
    "window": "#0b6e99",
    "local": "#8f4fa8",
    "global": "#2e7d32",
    "gaussian": "#c2571a",
}


def floor_ms(row: BenchRow) -> float | None:
    """Return the least time in ms in which an H200 could compute a row's call; None on another device."""
    if "H200" not in row.device:
        return None
    scores = row.batch * row.heads * row.queries * row.keys
    products = 2 * _PRODUCTS[row.mode] * scores * row.head_size / _H200_FLOPS
    return max(products, _EXPS[row.mode] * scores / _H200_EXPS) * 1e3


def best_unbiased(rows: Iterable[BenchRow], shape: str, mode: str) -> BenchRow | None:
    """Return the fastest row without a bias, for a shape and mode; None if there is none."""
    peers = [
        row
        for row in rows
        if (row.shape, row.mode, row.metric, row.bias) == (shape, mode, "latency", "none")
        and row.value == row.value
    ]
    return min(peers, key=lambda row: row.value, default=None)


def write_report(rows: Sequence[BenchRow], folder: Path) -> str:
    """Write ``table.md`` and the plots into ``folder``, and return the text of ``table.md``."""
    text = _heading(rows) + "\n\n" + "\n\n".join(_tables(rows)) + "\n"
    (folder / "table.md").write_text(text)
    _plot_ratios(rows, folder / "ratios.png")
    for suite, axis in (("keys", "keys"), ("queries", "queries")):
        _plot_growth([row for row in rows if row.suite == suite], axis, folder / f"growth_{axis}.png")
    return text


def _heading(rows: Sequence[BenchRow]) -> str:
    """Return the first paragraph: device, versions, commit and units."""
    first = rows[0]
    return (
        f"Device {first.device}; {first.versions}; commit {first.commit}; {first.dtype}. Times in ms: "
        "medians with the 20th and 80th percentile; peak memory beyond inputs and gradients in MiB. "
        "Making a dense bias is part of the time."
    )


def _tables(rows: Sequence[BenchRow]) -> list[str]:
    """Return the table of our kernel's ratios, one table per shape and mode, and one per growth suite."""
    parts = [ratios(rows)]
    for shape in dict.fromkeys(row.shape for row in rows if row.suite == "shapes"):
        for mode in dict.fromkeys(row.mode for row in rows if row.shape == shape):
            parts.append(_shape_table([r for r in rows if r.suite == "shapes"], shape, mode))
    for suite in ("keys", "queries", "memory"):
        chosen = [row for row in rows if row.suite == suite]
        if chosen:
            parts.append(_growth_table(suite, chosen))
        if chosen and suite != "memory":
            parts.append(straightness(chosen, suite, floor_ms))
    return [part for part in parts if part]


def _shape_table(rows: Sequence[BenchRow], shape: str, mode: str) -> str:
    """Return the table of one shape and mode."""
    mine = [row for row in rows if (row.shape, row.mode) == (shape, mode)]
    best = best_unbiased(mine, shape, mode)
    floor = floor_ms(mine[0])
    lines = [
        f"### {shape}, {mode.replace('_', ' + ')}",
        "",
        "| bias | impl | ms | 20 % .. 80 % | / unbiased | / floor | host ms | extra MiB | error / budget |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (r for r in mine if r.metric == "latency"):
        if row.value != row.value:
            lines.append(f"| {row.bias} | {row.impl} | {row.note} | | | | | | |")
            continue
        values = {r.metric: r.value for r in mine if (r.impl, r.bias) == (row.impl, row.bias)}
        cells = [
            f"{row.value:.3f}",
            f"{row.low:.3f} .. {row.high:.3f}",
            f"{row.value / best.value:.2f}" if best else "",
            f"{row.value / floor:.1f}" if floor else "",
            f"{values['host']:.3f}" if "host" in values else "",
            f"{values['peak_extra']:.0f}" if "peak_extra" in values else "",
            f"{values['error_over_budget']:.2f}" if "error_over_budget" in values else "",
        ]
        lines.append(f"| {row.bias} | {row.impl} | {' | '.join(cells)} |")
    if best:
        lines += ["", f"Best without bias: {best.impl}, {best.value:.3f} ms."]
    return "\n".join(lines)


def _growth_table(suite: str, rows: Sequence[BenchRow]) -> str:
    """Return the table of a growth suite: one line per size, one column per implementation and mode."""
    metric, unit = ("peak_extra", "MiB") if suite == "memory" else ("latency", "ms")
    chosen = [row for row in rows if row.metric == metric]
    columns = list(dict.fromkeys((row.bias, row.impl, row.mode) for row in chosen))
    names = [f"{bias}/{impl} {mode.replace('_', ' + ')}" for bias, impl, mode in columns]
    lines = [
        f"### Growth: {suite} ({unit})",
        "",
        f"| Q | K | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for queries, keys in dict.fromkeys((row.queries, row.keys) for row in chosen):
        values = {
            (row.bias, row.impl, row.mode): row.value
            for row in chosen
            if (row.queries, row.keys) == (queries, keys)
        }
        cells = [f"{values[column]:.3f}" if column in values else "" for column in columns]
        lines.append(f"| {queries} | {keys} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _plot_ratios(rows: Sequence[BenchRow], path: Path) -> None:
    """Plot each biased implementation's time over that of the fastest unbiased one, by shape and mode."""
    from matplotlib.figure import Figure

    mine = [
        row for row in rows if row.suite == "shapes" and row.metric == "latency" and row.value == row.value
    ]
    modes = list(dict.fromkeys(row.mode for row in mine))
    shapes = list(dict.fromkeys(row.shape for row in mine))
    figure = Figure(figsize=(6.5 * max(len(modes), 1), 4.2), layout="constrained")
    for axes, mode in zip(figure.subplots(1, max(len(modes), 1), squeeze=False)[0], modes, strict=False):
        for bias, impl in dict.fromkeys((row.bias, row.impl) for row in mine if row.bias != "none"):
            points = []
            for i, shape in enumerate(shapes):
                best = best_unbiased(mine, shape, mode)
                at = [r for r in mine if (r.shape, r.mode, r.bias, r.impl) == (shape, mode, bias, impl)]
                points += [(i, at[0].value / best.value)] if at and best else []
            if points:
                style = _STYLES.get(impl, "x:")
                axes.plot(
                    *zip(*points, strict=True), style, label=f"{bias} / {impl}", color=_COLOURS.get(bias)
                )
        axes.axhline(1, color="#444444", linewidth=0.8)
        axes.set(title=mode.replace("_", " + "), ylabel="time / best without bias", yscale="log")
        axes.set_xticks(range(len(shapes)), shapes, rotation=30, ha="right")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def _plot_growth(rows: Sequence[BenchRow], axis: str, path: Path) -> None:
    """Plot the time over the number of keys or queries, with the floor."""
    from matplotlib.figure import Figure

    mine = [row for row in rows if row.metric == "latency" and row.value == row.value]
    if not mine:
        return
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for bias, impl, mode in dict.fromkeys((row.bias, row.impl, row.mode) for row in mine):
        line = sorted(
            (getattr(r, axis), r.value) for r in mine if (r.bias, r.impl, r.mode) == (bias, impl, mode)
        )
        axes.plot(
            *zip(*line, strict=True), "o-", label=f"{bias} / {impl}, {mode.replace('_', ' + ')}", markersize=3
        )
    for mode in dict.fromkeys(row.mode for row in mine):
        floors = sorted(
            {(getattr(r, axis), f) for r in mine if r.mode == mode and (f := floor_ms(r)) is not None}
        )
        if floors:
            axes.plot(
                *zip(*floors, strict=True), ":", color="#444444", label=f"floor, {mode.replace('_', ' + ')}"
            )
    axes.set(xlabel=axis, ylabel="ms", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)
