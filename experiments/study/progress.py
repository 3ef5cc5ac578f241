"""The progress of a study: on a terminal a bar with the time left, elsewhere one line per event."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.terminal import Terminal
from pipeline.runtime.heartbeat import clear_heartbeat, read_heartbeat

POLL_S = 0.5
"""Time between two reads of the heartbeats of running trials, seconds."""

TRAINING_SHARE = 0.5
"""Share of a trial's time that is training, a guess: used until the first trial has ended."""


TOO_EARLY = 0.02
"""Share of a run's trials before which MLflow is told no end: most of the time so far was start-up."""


@dataclass
class _Running:
    """A trial that runs; ``cohort`` is the name of the first trial of those that run together."""

    folder: Path
    cohort: str
    started: float = field(default_factory=time.monotonic)
    stage: str = "start-up"
    done: int = 0
    total: int = 0

    def update(self) -> None:
        """Read the trial's heartbeat."""
        heartbeat = read_heartbeat(self.folder)
        if heartbeat is not None:
            self.stage, self.done, self.total = heartbeat.stage, heartbeat.done, heartbeat.total

    @property
    def fraction(self) -> float:
        """Share of the trial that is over, roughly; 0 to 1."""
        part = self.done / self.total if self.total else 0.0
        if self.stage == "train":
            return TRAINING_SHARE * part
        if self.stage == "evaluate":
            return TRAINING_SHARE + (1 - TRAINING_SHARE) * part
        return 0.0

    def __str__(self) -> str:
        """Return stage and count: ``train 30/60``."""
        return f"{self.stage} {self.done}/{self.total}" if self.total else self.stage


class StudyProgress:
    """Shows how far a study is; a context manager.

    Args:
        console: where to show it.
        total: trials of the study.
        done: trials that were done before.
    """

    def __init__(self, console: Terminal, total: int, done: int) -> None:
        self._console = console
        self._total, self._done, self._before = total, done, done
        self._running: dict[str, _Running] = {}
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._live: Progress | None = None
        self._bar: TaskID | None = None
        self._thread = threading.Thread(target=self._watch, name="study-progress", daemon=True)

    def __enter__(self) -> "StudyProgress":
        """Show the bar, if there is a terminal."""
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
            )
            self._live = Progress(*columns, console=self._console, transient=True)
            self._bar = self._live.add_task("starting", total=1.0, left="")
            self._live.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the bar."""
        self._over.set()
        if self._live is not None:
            self._thread.join()
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        elapsed = int(time.monotonic() - self._begun)
        self._console.print(
            f"{elapsed // 60:02d}:{elapsed % 60:02d}  {text}", highlight=False, soft_wrap=True
        )

    def started(self, folders: Mapping[str, Path]) -> None:
        """Note that trials start together; ``folders`` has the folder of each."""
        first = next(iter(folders))
        for name, folder in folders.items():
            clear_heartbeat(folder)
            with self._lock:
                self._running[name] = _Running(folder, first)
        if self._live is None:
            self.say(f"{spell_trials(list(folders))} started")

    def ended(self, name: str, error: str = "") -> None:
        """Note that a trial ended; ``error`` says why if it failed."""
        with self._lock:
            trial = self._running.pop(name, None)
            self._done += 1
        took = time.monotonic() - trial.started if trial else 0.0  # it may die before it starts
        outcome = f"failed after {took:.0f} s: {error}" if error else f"done in {took:.0f} s"
        left = self._seconds_left()
        rest = f", about {_spell(left)} left" if left else ""
        self.say(f"{name} {outcome} ({self._done} of {self._total}{rest})")

    def numbers(self) -> dict[str, float]:
        """Return how many trials are left of those asked for, and the hours that they take, if known."""
        with self._lock:
            left = self._total - self._done
        seconds = self._seconds_left() if self._fraction() > TOO_EARLY else None
        return {"trials_left": left} | ({} if seconds is None else {"hours_left": seconds / 3600})

    def _fraction(self) -> float:
        """Return the share of this run's trials that is over, 0 to 1."""
        with self._lock:
            for trial in self._running.values():
                trial.update()
            over = self._done - self._before + sum(trial.fraction for trial in self._running.values())
        return over / max(self._total - self._before, 1)

    def _seconds_left(self) -> float | None:
        fraction = self._fraction()
        if fraction <= 0:
            return None
        return (time.monotonic() - self._begun) * (1 - fraction) / fraction

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            with self._lock:
                words = ", ".join(_spell_running(self._running))
            left = self._seconds_left()
            assert self._live is not None  # this thread runs on a terminal only
            assert self._bar is not None
            self._live.update(
                self._bar,
                description=f"{self._done}/{self._total} trials" + (f" · {words}" if words else ""),
                completed=self._fraction(),
                left=f"about {_spell(left)} left" if left else "",
            )


def spell_trials(names: Sequence[str]) -> str:
    """Return trials that run together in words; of several, their names without the digests."""
    if len(names) == 1:
        return names[0]
    return f"a cohort of {len(names)} ({', '.join(name.rpartition('_')[0] or name for name in names)})"


def _spell_running(running: Mapping[str, _Running]) -> Iterator[str]:
    """Yield what each cohort does: its trial, or how many they are, and how far the last of them is."""
    for first in dict.fromkeys(trial.cohort for trial in running.values()):
        together = {name: trial for name, trial in running.items() if trial.cohort == first}
        last = min(together.values(), key=lambda trial: trial.fraction)
        who = f"{len(together)} trials" if len(together) > 1 else next(iter(together)).partition("_")[0]
        yield f"{who} {last}"


def _spell(seconds: float) -> str:
    """Return a duration for people, in minutes or seconds."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def task_bar(console: Terminal, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left on a terminal, and one line elsewhere.

    Args:
        console: where.
        what: what is being done.

    Yields:
        A function to call with what is done and the total.
    """
    if not console.is_terminal:
        console.print(what, highlight=False)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
