"""Delete keys from config files as text. Comments and formatting around them stay as they are."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from experiments.lint.finding import LintError
from pipeline.config.provenance import SourcePlace
from pipeline.storage.files import atomic_path


def remove(places: Iterable[SourcePlace]) -> list[Path]:
    """Delete items such as ``key=value`` from their files.

    Args:
        places: the items to delete. Each has an ``end``.

    Returns:
        The files that were rewritten. Each was replaced atomically.

    Raises:
        LintError: a file would no longer be valid Python. Then no file is written.
    """
    by_file: dict[Path, set[SourcePlace]] = defaultdict(set)
    for place in places:
        by_file[place.file].add(place)
    texts = {file: _without(file.read_bytes(), to_delete) for file, to_delete in by_file.items()}
    for file, text in texts.items():
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise LintError(f"{file}: cannot be mended as text ({error}); nothing was written") from error
    for file, text in texts.items():
        _write(file, text)
    return list(texts)


def _without(text: bytes, places: Iterable[SourcePlace]) -> bytes:
    """Delete items from the last to the first, so that the places of the remaining items stay valid."""
    for place in sorted(places, key=lambda p: (p.line, p.column), reverse=True):
        assert place.end is not None
        starts = _line_starts(text)
        first = starts[place.line - 1] + place.column - 1
        last = starts[place.end[0] - 1] + place.end[1] - 1
        text = _cut(text, first, last)
    return text


def _cut(text: bytes, first: int, last: int) -> bytes:
    """Delete ``text[first:last]``, and the comma and blanks that belong to it."""
    line_start = text.rfind(b"\n", 0, first) + 1
    after = last + _blanks(text[last:])
    comma = text[after : after + 1] == b","
    if comma:
        after += 1 + _blanks(text[after + 1 :])
    first_on_line = not text[line_start:first].strip()
    if first_on_line and text[after : after + 1] in (b"\n", b"\r", b""):  # the item is all of its line
        line_end = text.find(b"\n", after)
        return text[:line_start] + (b"" if line_end < 0 else text[line_end + 1 :])
    if first_on_line or comma:
        return text[:first] + text[after:]
    before = text[:first].rstrip(b" \t")
    if before.endswith(b","):  # the last item: also delete the comma before it
        before = before[:-1]
    return before + text[last:]


def _blanks(text: bytes) -> int:
    return len(text) - len(text.lstrip(b" \t"))


def _line_starts(text: bytes) -> list[int]:
    starts = [0]
    while (end := text.find(b"\n", starts[-1])) >= 0:
        starts.append(end + 1)
    return starts


def _write(file: Path, text: bytes) -> None:
    """Replace a file atomically and keep its permissions."""
    with atomic_path(file.resolve()) as partial:
        partial.write_bytes(text)
        partial.chmod(file.stat().st_mode & 0o7777)
