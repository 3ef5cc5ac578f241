"""Frames that cannot be read while training - stop at the first, or skip a limited number of them.

A skipped frame is replaced by the next one that can be read, so batches keep their size and a run that
goes on sees what an unbroken one does. Every skipped frame is written down, with why.
"""

import json
import sys
from pathlib import Path

from pipeline.data.sample import DataError


class BrokenFrames:
    """The broken frames that one rank has met.

    Args:
        limit: distinct frames that may be skipped; 0 stops at the first.
        path: file of JSON lines with token, step and problem, one a frame, made when there is one; what
            it holds already counts.
    """

    def __init__(self, limit: int = 0, path: Path | None = None) -> None:
        self.limit = limit
        self._path = path
        self._why: dict[str, str] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                held = json.loads(line)
                self._why[held["token"]] = held["problem"]

    def __len__(self) -> int:
        return len(self._why)

    def note(self, token: str, problem: str, step: int) -> None:
        """Write a skipped frame down.

        Raises:
            DataError: with it there are more than may be skipped.
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
