"""``events.jsonl`` of a trial: when it started, from which step it was resumed, when it hung.

For people and for tests: nothing reads it to decide what runs. It is no measurement, so it is no row.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.json_files import JsonError, check_fields, parse_json

FILE = "events.jsonl"

STARTED, RESUMED, HUNG = "started", "resumed", "hung"


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial.

    Attributes:
        what: ``STARTED`` (without a checkpoint), ``RESUMED`` (from one) or ``HUNG``.
        step: optimiser steps done by the checkpoint that it was resumed from; else 0.
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
    """Append an event to the log of the trial in ``folder``, in one write."""
    line = json.dumps(asdict(Event(what, step, why, os.getpid(), time.time()))) + "\n"
    folder.mkdir(parents=True, exist_ok=True)  # the log is the first file of a trial
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(line)


def read_events(folder: Path) -> list[Event]:
    """Return what happened to a trial, oldest first; a line that a crash cut short is left out."""
    path = folder / FILE
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    events = []
    for line in lines:
        try:
            plain = parse_json(line, dict)
            check_fields(Event, plain)
            events.append(Event(**plain))
        except JsonError:  # cut short, perhaps with the next line behind it
            continue
    return events


def starts_of(folder: Path) -> list[Event]:
    """Return when a trial was started or resumed, oldest first."""
    return [event for event in read_events(folder) if event.what in (STARTED, RESUMED)]


def describe_restarts(folder: Path) -> str:
    """Return how often a trial was started and from which steps it was resumed; empty if it was never."""
    starts = starts_of(folder)
    if len(starts) < 2:
        return ""
    steps = ", ".join(str(event.step) for event in starts[1:])
    hung = [event.why for event in read_events(folder) if event.what == HUNG]
    last = f"; it hung {len(hung)} times, last: {hung[-1]}" if hung else ""
    return f"started {len(starts)} times, resumed after step {steps}{last}"
