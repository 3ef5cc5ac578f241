"""Frames that cannot be read in training: stop at the first one, or skip a limited number.

A skipped frame is replaced by the next readable one, so batches keep their size, and a resumed run sees the
same frames as an uninterrupted one. Every skipped frame is recorded with the reason.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.sample import DataError
from pipeline.json_files import MAX_BYTES, JsonError, check_fields, parse_json, read_bytes
from pipeline.storage.files import cut_partial_line


@dataclass(frozen=True)
class _Entry:
    """A line of the file."""

    token: str
    step: int
    problem: str


def _read(path: Path) -> dict[str, str]:
    """Return token -> problem. A last line that a crash cut short is left out.

    Raises:
        DataError: another line is spoilt.
    """
    try:
        *lines, _ = read_bytes(path, MAX_BYTES).split(b"\n")
        entries = [parse_json(line, dict, f"line {number}") for number, line in enumerate(lines, start=1)]
        for number, entry in enumerate(entries, start=1):
            check_fields(_Entry, entry, f"line {number}")
    except JsonError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(
            f"{path}: not a list of broken frames ({reason}); delete it to count them anew"
        ) from error
    return {entry["token"]: entry["problem"] for entry in entries}


class BrokenFrames:
    """The broken frames of one rank.

    Args:
        limit: number of different frames that may be skipped; 0: the first one is an error.
        path: file of JSON lines with token, step and problem, one per frame. It is made with the first broken
            frame. Frames that it already holds count.
    """

    def __init__(self, limit: int = 0, path: Path | None = None) -> None:
        self.limit = limit
        self._path = path
        self._why: dict[str, str] = {}
        if path is not None and path.exists():
            cut_partial_line(path)
            self._why = _read(path)

    def __len__(self) -> int:
        return len(self._why)

    def note(self, token: str, problem: str, step: int) -> None:
        """Record a skipped frame.

        Raises:
            DataError: there are now more broken frames than may be skipped.
        """
        if token in self._why:
            return
        self._why[token] = problem
        if len(self._why) > self.limit:
            raise DataError(
                f"{len(self._why)} frames cannot be read, and data.max_broken_frames allows {self.limit}; "
                f"the last is {token}: {problem}" + (f" (all of them: {self._path})" if self._path else "")
            )
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"token": token, "step": step, "problem": problem}) + "\n")
        sys.stderr.write(f"skipped frame {token} ({len(self._why)} of at most {self.limit}): {problem}\n")
