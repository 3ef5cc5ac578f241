"""The table of kernels that ran at each site."""

from collections import defaultdict
from collections.abc import Sequence

from experiments.reporting.tables.base import Table
from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row

SLOWEST = 4
"""Kernels that a page names per site; the CSV file has them all."""


def kernel_table_of_study(rows: Sequence[Row]) -> Table:
    """Return, per site and choice, the kernels that really ran, slowest first."""
    times: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    choices = {text: dict(Plan.parse(text).choices) for text in {row.plan for row in rows}}
    for row in rows:
        if row.metric == "kernel_ms":
            choice = str(choices[row.plan].get(row.site, ""))
            times[row.site, choice][row.kernel].append(row.value)
    lines = []
    for (site, choice), kernels in sorted(times.items()):
        slowest = sorted(((sum(v) / len(v), name) for name, v in kernels.items()), reverse=True)
        lines += [(site, choice, name, ms) for ms, name in slowest]
    return Table(
        "kernels", "Kernels that really ran", ("site", "choice", "kernel", "ms in one step"), tuple(lines)
    )


def kernel_table(table: Table) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the kernels as heads and lines to print: a line per site and choice, the slowest named."""
    groups: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for site, choice, kernel, ms in table.lines:
        groups[str(site), str(choice)].append((str(kernel), float(ms or 0)))
    lines = []
    for (site, choice), kernels in groups.items():
        named = ", ".join(f"{kernel} {ms:.2f}" for kernel, ms in kernels[:SLOWEST])
        rest = f", {len(kernels) - SLOWEST} more" if len(kernels) > SLOWEST else ""
        lines.append((site, choice, named + rest, f"{sum(ms for _, ms in kernels):.2f}"))
    return ("site", "choice", "slowest kernels, ms in one step", "together, ms"), tuple(lines)
