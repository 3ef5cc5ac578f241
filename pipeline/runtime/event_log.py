"""When a trial started, from which step it went on, and when it hung; one line each.

For people and for tests: nothing reads it to decide what runs. It is no measurement, so it is no row.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "diary.jsonl"

STARTED, HUNG = "started", "hung"


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial.

    Attributes:
        what: ``STARTED`` or ``HUNG``.
        step: optimiser steps done by the checkpoint it went on from; 0 without one, or if it hung.
        why: a sentence; empty if there is nothing to say.
        pid: process that wrote the line.
        time: Unix time, seconds.
    """

    what: str
    step: int = 0
    why: str = ""
    pid: int = 0
    time: float = 0.0


def append_event(folder: Path, what: str, step: int = 0, why: str = "") -> None:
    """Append an event to the diary of the trial in ``folder``, in one write."""
    line = json.dumps(asdict(Event(what, step, why, os.getpid(), time.time()))) + "\n"
    folder.mkdir(parents=True, exist_ok=True)  # a trial's start is the first that its folder holds
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(line)


def read_events(folder: Path) -> list[Event]:
    """Return what happened to a trial, oldest first; a line that a crash cut short is left out."""
    path = folder / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(Event(**json.loads(line)))
        except (ValueError, TypeError):  # cut short, or written over a line that was
            continue
    return found


def count_restarts(folder: Path) -> str:
    """Say how often a trial was started again and where it went on; empty if it ran in one go."""
    found = read_events(folder)
    starts = [event for event in found if event.what == STARTED]
    if len(starts) < 2:
        return ""
    again = f"started {len(starts)} times, went on after step {', '.join(str(e.step) for e in starts[1:])}"
    hung = [event.why for event in found if event.what == HUNG]
    return again + (f"; {len(hung)} x hung, last: {hung[-1]}" if hung else "")
