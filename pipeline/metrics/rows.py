"""The one measurement record, and the append-only file that keeps it.

Long format: one number per row, with everything needed to judge it. Rows are written as JSON
lines, each in one write that is flushed to disk; a trial has one writer. A last line that a
crash cut short is dropped on reading, and said so; a broken line elsewhere is an error.

Each line ends with a seal, a digest of the line and of the seal before it, so that a row which is changed,
removed, added or moved afterwards shows. That guards against the hand and the merge, not against somebody
who seals anew: nothing in a folder of one's own can.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


class RowsError(ValueError):
    """A rows file that cannot be read."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        study: name of the study.
        trial: name of the trial.
        plan: the resolved plan, as ``str(plan)``.
        metric: what was measured (``mAP``, ``NDS``, ``latency_p50_ms``, ``bias_scale``, ...).
        unit: unit of ``value`` (``fraction``, ``ms``, ``samples/s``, ``GiB``, ``logits``, ...).
        value: the number; NaN is allowed and stored as null.
        site: the attention site it belongs to; empty if it is about the whole model.
        condition: sensor condition (``clean``, ``no_lidar``, ...); empty if it has none.
        scene: scene name if the number is about one scene, ``~17`` if it is about a draw of scenes
            (``pipeline.evaluation.bootstrap``; ``n`` is then how many scenes were drawn); empty otherwise.
        seed: seed of the trial.
        step: optimiser steps done when it was measured.
        spread: half the distance between the 20th and 80th percentile, same unit; NaN if n is 1.
        n: how many repetitions ``value`` summarises.
        device: ``cpu`` or the GPU's name.
        versions: ``torch=...;ray=...;data=...``: what decides numbers; ``data`` is a ``fingerprint``.
        commit: commit of the code, ``+`` appended if the tree was dirty.
        recipe: digest of the study's recipe and rule, fixed before its first trial.
        time: Unix time, seconds.
    """

    study: str
    trial: str
    plan: str
    metric: str
    unit: str
    value: float
    site: str = ""
    condition: str = ""
    scene: str = ""
    seed: int = 0
    step: int = 0
    spread: float = math.nan
    n: int = 1
    device: str = "cpu"
    versions: str = ""
    commit: str = ""
    recipe: str = ""
    time: float = 0.0


_COLUMNS = tuple(field.name for field in fields(Row))
_FLOATS = ("value", "spread", "time")
_NUMBERS = (*_FLOATS, "seed", "step", "n")


_TAIL = 4096
"""Bytes read from a file's end to find its last seal: a line has about a thousand."""


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a JSON-lines file, sealed, and flush it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seal, lines = last_seal(path), []
    for row in rows:
        record = {k: None if _is_nan(v) else v for k, v in asdict(row).items()}
        seal = _seal(seal, record)
        lines.append(json.dumps({**record, "seal": seal}, allow_nan=False) + "\n")
    _append(path, "".join(lines).encode())


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
    """Read a rows file; warn about a last line that was cut short, refuse any other bad line."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_from_line(line))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            if number == len(lines) and not text.endswith("\n"):
                warnings.warn(f"{path}: the last line was cut short and is left out", stacklevel=2)
                break
            raise RowsError(f"{path}, line {number}: not a row ({error})") from error
    return rows


def last_seal(path: Path) -> str:
    """Return the seal of a rows file's last line; empty if there is no such line or it has none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, _TAIL), os.SEEK_END)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    try:
        return str(json.loads(lines[-1])["seal"])
    except (IndexError, ValueError, KeyError, TypeError):  # empty, cut short, or from before there were seals
        return ""


def seal_fault(path: Path, end: str = "") -> str:
    """Say how a rows file differs from what was written to it; empty if it does not.

    Args:
        path: a file that ``read_rows`` reads.
        end: a seal that must be among its seals, so that a missing end shows too; empty asks for none.
    """
    seal, seals = "", set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):  # cut short by a crash; not counted as a row either
            break
        record = json.loads(line)
        found = record.pop("seal", "")
        if not found:
            return f"line {number} has no seal"
        seal = _seal(seal, record)
        if found != seal:
            return f"line {number} does not match its seal: a row was changed, removed or added"
        seals.add(seal)
    return f"rows are missing at its end (no line has the seal {end})" if end and end not in seals else ""


def _seal(before: str, record: dict[str, Any]) -> str:
    """Return twelve hex digits for a line's content after the line sealed ``before``."""
    return hashlib.sha256((before + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:12]


def read_study(folder: Path) -> list[Row]:
    """Read the rows of all trials of a study folder, in the order of the trials' names."""
    return [row for path in sorted(folder.glob("trials/*/rows.jsonl")) for row in read_rows(path)]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _from_line(line: str) -> Row:
    record = json.loads(line)
    if not isinstance(record, dict) or set(record) - {"seal"} != set(_COLUMNS):
        raise ValueError(f"expected the columns {', '.join(_COLUMNS)}")
    values: dict[str, Any] = {k: math.nan if v is None and k in _FLOATS else v for k, v in record.items()}
    values.pop("seal", None)
    for key, value in values.items():
        if isinstance(value, str) != (key not in _NUMBERS) or isinstance(value, list | dict | bool):
            raise ValueError(f"{key} is {value!r}, expected {'a number' if key in _NUMBERS else 'text'}")
    return Row(**values)


def select(rows: Iterable[Row], **where: object) -> Iterator[Row]:
    """Yield the rows whose fields equal the given values, e.g. ``metric='mAP', condition='clean'``."""
    return (row for row in rows if all(getattr(row, k) == v for k, v in where.items()))


MARK = "~"
"""How the ``scene`` of a row begins that is about a draw of scenes, and not about one."""


def draw_name(draw: int) -> str:
    """Return how a row's ``scene`` spells a draw."""
    return f"{MARK}{draw}"


def draw_of(scene: str) -> int | None:
    """Return which draw a row's ``scene`` is; None if it is a scene or empty."""
    return int(scene.removeprefix(MARK)) if scene.startswith(MARK) else None
