"""Frames that cannot be read in training: stop at the first one, or skip a limited number.

A skipped frame is replaced by the next readable one, so batches keep their size, and a resumed run sees the
same frames as an uninterrupted one. Every skipped frame is recorded with the reason.
"""

import json
import sys
from pathlib import Path

from pipeline.data.sample import DataError


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
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._why[entry["token"]] = entry["problem"]

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
