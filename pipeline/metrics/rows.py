"""The one measurement record, and the append-only file that keeps it.

Long format: one number per row, with everything needed to judge it. Rows are written as JSON
lines, each in one write that is flushed to disk; a trial has one writer. A last line that a
crash cut short is left out on reading, with a warning; a broken line elsewhere is an error. When a trial
ends, its status keeps a digest of its rows file, so that a later edit shows.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import written_by_old_version
from pipeline.json_files import JsonError, fault_of_value, read_bytes

PEAKS = ("peak_allocated_gib", "peak_resident_gib")
"""Metrics of peak memory, on a GPU and on a CPU; ``train_`` or ``inference_`` may precede them."""


ANEW = "; restore the file, or remove its folder and run again what wrote it"
"""What to do about a damaged file of rows; a study runs the trial of a removed folder again, and no other."""


class RowsError(ValueError):
    """A rows file that cannot be read."""


class _OldVersionError(Exception):
    """A line that version 0.1.0 wrote."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        study: name of the study.
        trial: name of the trial.
        plan: the resolved plan, as ``str(plan)``.
        metric: what was measured (``mAP``, ``NDS``, ``step_ms``, ``bias_scale``, ...). Its parts are
            separated by ``/``: ``AP/car``, ``intervention/NDS``, ``train_module_ms/pts_backbone``.
        unit: unit of ``value`` (``fraction``, ``ms``, ``samples/s``, ``GiB``, ``logits``, ...); empty for a
            plain number.
        value: the number; NaN is allowed and stored as null.
        site: the attention site it belongs to; empty if it is about the whole model.
        kernel: name of the kernel that ``kernel_ms`` is about; empty for other metrics.
        condition: sensor condition (``clean``, ``no_lidar``, ...); empty if it has none.
        scene: name of the scene if the number is about one scene; empty otherwise.
        draw: index of the bootstrap draw of logs that the number is about
            (``pipeline.evaluation.bootstrap``); None if it is about none.
        seed: seed of the trial.
        step: optimiser steps done when it was measured.
        half_iqr60: half of the distance between the 20th and the 80th percentile, in ``unit``; NaN if n is 1.
        n: number of repetitions (times), frames (accuracy) or logs (a draw) that ``value`` summarises.
        device: ``cpu`` or the GPU's name.
        versions: ``torch=...;ray=...;data=...``: what decides numbers; ``data`` is a ``fingerprint``. A
            string, because rows are compared and grouped by all of it; only the environment table splits it.
        commit: commit of the code, ``+`` appended if the tree was dirty.
        recipe_digest: digest of the study's recipe and rule, fixed before its first trial.
        time: Unix time, seconds.
    """

    study: str
    trial: str
    plan: str
    metric: str
    unit: str
    value: float
    site: str = ""
    kernel: str = ""
    condition: str = ""
    scene: str = ""
    draw: int | None = None
    seed: int = 0
    step: int = 0
    half_iqr60: float = math.nan
    n: int = 1
    device: str = "cpu"
    versions: str = ""
    commit: str = ""
    recipe_digest: str = ""
    time: float = 0.0


_COLUMNS = tuple(field.name for field in fields(Row))
_FLOATS = ("value", "half_iqr60", "time")
_NUMBERS = (*_FLOATS, "draw", "seed", "step", "n")
LARGEST = 1e39
"""Largest number that is read: float32, in which losses are computed, ends at 3.4e38."""
LAST_TIME = 1e11
"""Largest Unix time that is read, in the year 5138: a calendar of Python ends in 9999."""
_RANGES = {
    "time": (0, LAST_TIME),
    "half_iqr60": (0, LARGEST),
    "n": (0, 2**63 - 1),
    "step": (0, 2**63 - 1),
    "draw": (0, 2**63 - 1),
    "seed": (-(2**63), 2**63 - 1),
}
"""Column -> least and largest number."""
MAX_BYTES = 2**30
"""Largest rows file that is read: 2 million rows; a trial writes some thousands."""
_OLD_COLUMNS = {"spread", "recipe"}
"""Columns of rows that version 0.1.0 wrote, and this version does not."""


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a JSON-lines file and flush it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = ({k: None if _is_nan(v) else v for k, v in asdict(row).items()} for row in rows)
    _append(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode())


def _append(path: Path, data: bytes) -> None:
    """Append all of ``data`` and flush it to disk, or leave the file as it was (a full disk, say)."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(file).st_size
        try:
            while data:  # a disk that fills up takes part of a write without an error
                data = data[os.write(file, data) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)


def read_rows(path: Path) -> list[Row]:
    """Read a rows file; warn about a last line that was cut short, refuse any other bad line.

    Raises:
        FileNotFoundError: there is no such file.
        RowsError: it cannot be read.
    """
    try:
        *lines, rest = read_bytes(path, MAX_BYTES).split(b"\n")
    except JsonError as error:
        raise RowsError(str(error)) from error
    rows = []
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            rows.append(_from_line(line))
        except _OldVersionError:
            raise RowsError(written_by_old_version(str(path))) from None
        except ValueError as error:
            if number > len(lines):
                warnings.warn(f"{path}: the last line was cut short and is left out", stacklevel=2)
                break
            raise RowsError(f"{path}, line {number}: not a row ({error}){ANEW}") from error
    return rows


def read_rows_from(path: Path, start: int, most: int | None = None) -> list[tuple[Row, int]]:
    """Read the complete lines of a rows file that begin at a byte, or after it; the file may be growing.

    Args:
        path: the rows file.
        start: byte at which a line begins.
        most: number of rows that are read; None: all.

    Returns:
        Each row, and the byte after its line.

    Raises:
        FileNotFoundError: there is no such file.
        RowsError: it cannot be read.
    """
    try:
        lines = read_bytes(path, MAX_BYTES, start).split(b"\n")[:-1]
    except JsonError as error:
        raise RowsError(str(error)) from error
    rows, end = [], start
    for line in lines[:most]:
        try:
            row = _from_line(line)
        except _OldVersionError:
            raise RowsError(written_by_old_version(str(path))) from None
        except ValueError as error:
            raise RowsError(f"{path}, the line at byte {end}: not a row ({error}){ANEW}") from error
        end += len(line) + 1
        rows.append((row, end))
    return rows


def read_study(folder: Path) -> list[Row]:
    """Read the rows of all trials of a study folder, in the order of the trials' names."""
    return [row for path in sorted(folder.glob("trials/*/rows.jsonl")) for row in read_rows(path)]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _from_line(line: bytes) -> Row:
    try:
        record = json.loads(line.decode())
    except RecursionError:
        raise ValueError("nested too deep") from None
    if isinstance(record, dict) and set(record) >= _OLD_COLUMNS:
        raise _OldVersionError
    if not isinstance(record, dict) or set(record) != set(_COLUMNS):
        raise ValueError(f"expected the columns {', '.join(_COLUMNS)}")
    values: dict[str, Any] = {k: math.nan if v is None and k in _FLOATS else v for k, v in record.items()}
    for column, value in values.items():
        if fault := _fault(column, value):
            raise ValueError(fault)
    return Row(**values)


def _fault(column: str, value: object) -> str:
    """Return what is wrong with a value read from a file; empty if it can be used."""
    if column not in _NUMBERS:
        fault = _fault_of_text(value) if isinstance(value, str) else f"is {_spell(value)}, expected text"
        return f"{column} {fault}" if fault else ""
    if value is None and column == "draw":
        return ""
    whole = column not in _FLOATS
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{column} is {_spell(value)}, expected a {'whole ' * whole}number"
    low, high = _RANGES.get(column, (-LARGEST, LARGEST))
    if not (low <= value <= high or value != value):
        return f"{column} is {_spell(value)}, expected a number between {low:g} and {high:g}"
    return ""


@lru_cache(maxsize=1024)
def _fault_of_text(text: str) -> str:
    """As ``fault_of_value``; the rows of a file hold few different texts."""
    return fault_of_value(text)


def _spell(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def select(rows: Iterable[Row], **where: object) -> Iterator[Row]:
    """Yield the rows whose fields equal the given values, e.g. ``metric='mAP', condition='clean'``."""
    wanted = list(where.items())
    for row in rows:
        for field, value in wanted:  # a loop, because a report selects thirty times from thousands of rows
            if getattr(row, field) != value:
                break
        else:
            yield row
