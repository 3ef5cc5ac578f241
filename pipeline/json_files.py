"""Open JSON that may come from anywhere, and check that it holds what its reader expects.

A file is refused with a sentence if it is no regular file, too large, not UTF-8, not JSON, nested too deep,
or holds a number that is not finite or text that no file could hold. ``check_fields`` compares the values
with the types of a dataclass, so that a reader meets no value of another type later on.
"""

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

MAX_BYTES = 64 * 2**20
"""Largest file that is read unless the reader says otherwise; those of a study have some kB."""
MAX_DEPTH = 64
"""Most levels of lists and objects in one another; those of this project have at most ten."""
MAX_INTEGER = 2**63
"""Bound of integers, exclusive: what 64 bits hold."""

MAX_REASON = 300
"""Characters of a reason."""

T = TypeVar("T", dict[str, Any], list[Any])
NAMES: dict[Any, str] = {
    dict: "an object",
    Mapping: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
}


class JsonError(ValueError):
    """JSON that cannot be used; the message is one sentence.

    Attributes:
        reason: what is wrong, a clause without the file's name.
    """

    def __init__(self, reason: str, what: str = "") -> None:
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"  # it may quote the file
        super().__init__(f"{what}: {reason}" if what else reason)
        self.reason = reason


def read_json(path: Path, expected: type[T], max_bytes: int = MAX_BYTES) -> T:
    """Read a JSON file whose top level is an object (``dict``) or a list.

    Args:
        path: the file.
        expected: ``dict`` or ``list``.
        max_bytes: largest file that is read.

    Raises:
        FileNotFoundError: there is no such file.
        JsonError: it is refused.
    """
    return parse_json(read_bytes(path, max_bytes), expected, str(path))


def read_bytes(path: Path, max_bytes: int, start: int = 0, links: bool = True) -> bytes:
    """Read a regular file of limited size; a pipe or a device, which may never end, is refused.

    Args:
        path: the file.
        max_bytes: largest file that is read.
        start: byte from which on it is read.
        links: whether it may be a link. What is copied from a folder that may come from anybody must not be
            one: it could be any file of this machine.

    Raises:
        FileNotFoundError: there is no such file; a file stands where a folder of its path is expected, too.
        JsonError: it is no regular file, too large, or cannot be read.
    """
    try:
        found = os.stat(path, follow_symlinks=links)
        if not links and stat.S_ISLNK(found.st_mode):
            raise JsonError("is a link, expected the file itself", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise JsonError("is no regular file", str(path))
        if found.st_size > max_bytes:
            raise JsonError(f"has {found.st_size} bytes, expected {max_bytes} at most", str(path))
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    except OSError as error:
        raise JsonError(f"cannot be read ({os.strerror(error.errno or 0)})", str(path)) from error


def read_text(path: Path, max_bytes: int) -> str:
    """Read a short file of text, as ``read_bytes`` does; JsonError if it is not UTF-8."""
    try:
        return read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 (byte {error.start})", str(path)) from error


def parse_json(data: bytes | str, expected: type[T], what: str = "") -> T:
    """Parse JSON whose top level is an object (``dict``) or a list.

    Args:
        data: the JSON.
        expected: ``dict`` or ``list``.
        what: where it is from, for the message.

    Raises:
        JsonError: it is refused.
    """
    try:
        found = json.loads(data if isinstance(data, str) else data.decode())
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 (byte {error.start})", what) from error
    except RecursionError as error:
        raise JsonError(f"nested too deep, expected {MAX_DEPTH} levels at most", what) from error
    except ValueError as error:
        raise JsonError(str(error), what) from error
    if not isinstance(found, expected):
        raise JsonError(f"expected {NAMES[expected]}, got {_spell(found)}", what)
    if fault := _fault(found):
        raise JsonError(fault, what)
    return found


def _fault(top: Any) -> str:
    """Return what no reader could use, at any depth; empty if there is nothing."""
    waiting = [(top, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return f"nested too deep, expected {MAX_DEPTH} levels at most"
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif fault := fault_of_value(value):
            return fault
    return ""


def fault_of_value(value: object) -> str:
    """Return why a plain value cannot be used, a clause; empty if it can. NaN can be used."""
    if isinstance(value, str):
        return (
            "" if value.isascii() or _is_text(value) else "holds half of a surrogate pair, which is no text"
        )
    if isinstance(value, float):
        return "holds a number that is out of range" if math.isinf(value) else ""
    if isinstance(value, int):
        return "holds a whole number that is out of range" if abs(value) >= MAX_INTEGER else ""
    return ""


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_fields(kind: type, plain: object, at: str = "", but: tuple[str, ...] = ()) -> None:
    """Compare an object of JSON with the fields of a dataclass: names, and types at any depth.

    Args:
        kind: the dataclass. Its tuples are lists in JSON.
        plain: the object.
        at: what it is, for the message, such as ``rule``.
        but: fields that the reader checks itself.

    Raises:
        JsonError: a key is unknown or missing, or a value has another type.
    """
    if not isinstance(plain, Mapping):
        raise JsonError(f"{at or 'it'} is {_spell(plain)}, expected an object")
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(map(str, set(plain) - set(known))):
        raise JsonError(f"{at or 'it'} has the unknown key {unknown[0]}")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in plain]:
        raise JsonError(f"{at or 'it'} lacks the key {missing[0]}")
    hints = get_type_hints(kind)
    for name, value in plain.items():
        if name not in but:
            _check_value(hints[name], value, f"{at}.{name}" if at else name)


def _check_value(hint: Any, value: object, at: str) -> None:
    """Refuse a value that does not fit a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        check_fields(hint, value, at)
    elif origin in (Union, UnionType):
        _check_choice(inner, value, at)
    elif origin is tuple and isinstance(value, list | tuple):
        _check_entries(inner, value, at)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        for key, entry in value.items():
            _check_value(inner[1], entry, f"{at}.{key}")
    elif not _fits(origin or hint, value):
        raise JsonError(f"{at} is {_spell(value)}, expected {_named(origin or hint)}")


def _check_entries(hints: tuple[Any, ...], values: Sequence[object], at: str) -> None:
    """Refuse a list that does not fit a tuple's type."""
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise JsonError(f"{at} has {len(values)} entries, expected {len(hints)}")
    for index, (hint, value) in enumerate(zip(hints, values, strict=True)):
        _check_value(hint, value, f"{at}[{index}]")


def _check_choice(choices: tuple[Any, ...], value: object, at: str) -> None:
    """Refuse a value that fits none of several types; say what the last one expects."""
    if value is None and NoneType in choices:
        return
    faults = []
    for choice in choices:
        if choice is not NoneType:
            try:
                return _check_value(choice, value, at)
            except JsonError as error:
                faults.append(error)
    raise faults[-1]


def _fits(kind: type, value: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return kind is not tuple and isinstance(value, kind)


def _named(kind: type) -> str:
    return "a list" if kind is tuple else "true or false" if kind is bool else NAMES.get(kind, kind.__name__)


def _spell(value: object) -> str:
    """Return a value for a message: short, and a container by its kind."""
    if isinstance(value, Mapping | list | tuple):
        return NAMES[dict if isinstance(value, Mapping) else list]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
