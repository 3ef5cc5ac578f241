"""The rows file of one trial, with what every row repeats filled in.

A resumed trial measures some steps again. The file is append-only, so a row that is there already
(same metric, site, kernel, condition, scene, draw and step) is not written twice.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.storage.files import cut_partial_line


@dataclass(frozen=True)
class Measure:
    """One number before it becomes a row; fields as in ``Row``."""

    metric: str
    unit: str
    value: float
    site: str = ""
    condition: str = ""
    half_iqr60: float = math.nan
    n: int = 1
    scene: str = ""
    draw: int | None = None
    kernel: str = ""


class RowRecorder:
    """Appends measures to a trial's rows file.

    Args:
        path: the rows file; it may exist.
        common: all rows take study, trial, plan, seed, device, versions, commit and recipe digest from it.
    """

    def __init__(self, path: Path, common: Row) -> None:
        self._path = path
        self._common = common
        self._known = set()
        if path.exists():
            cut_partial_line(path)
            self._known = {_key(row) for row in read_rows(path)}

    def add(self, step: int, measures: Iterable[Measure]) -> None:
        """Append measures taken after ``step`` optimiser steps, in one flushed write."""
        rows = [self._row(step, measure) for measure in measures]
        new = [row for row in rows if _key(row) not in self._known]
        self._known |= {_key(row) for row in new}
        if new:
            append_rows(self._path, new)

    def has(self, step: int, metric: str, condition: str) -> bool:
        """Return whether a whole-model number is recorded already."""
        return (metric, "", "", condition, "", None, step) in self._known

    def _row(self, step: int, measure: Measure) -> Row:
        shared = {
            name: getattr(self._common, name)
            for name in ("study", "trial", "plan", "seed", "device", "versions", "commit", "recipe_digest")
        }
        return Row(**shared, **vars(measure), step=step, time=time.time())


def _key(row: Row) -> tuple[str, str, str, str, str, int | None, int]:
    return row.metric, row.site, row.kernel, row.condition, row.scene, row.draw, row.step
