"""Commands with a time limit, run one after another; what they say, with the time; and what they leave."""

import os
import re
import signal
import subprocess
import tarfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

COUNTING, EVERY_S = re.compile(r"(train|evaluate|early stopping) \d+/"), 15.0
"""Lines that count, and the time between two of them on the screen; the log has all."""

MOST_BYTES = 15 * 2**20
LEFT_OUT = ("checkpoints", "predictions", "mlruns")
KEPT = (".json", ".jsonl", ".csv", ".svg", ".png", ".html", ".md", ".txt", ".toml", ".py")


@dataclass
class Stage:
    """One command with a time limit.

    Attributes:
        name: of its log.
        words: the command.
        seconds: after which it is stopped.
        watch: says once a second whether to stop it before; None: nothing does.
    """

    name: str
    words: list[str]
    seconds: float
    watch: Any = None


class Runner:
    """Runs stages, prints what they say with the time, and collects what they leave.

    Args:
        out: where logs and archives go.
        seconds: of this call.
    """

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self._until, self._begun = out, time.monotonic() + seconds, time.monotonic()
        (out / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds of this call that are left."""
        return self._until - time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the time since the call began."""
        print(f"[{time.monotonic() - self._begun:6.1f} s] {text}", flush=True)

    def run(self, stage: Stage) -> str:
        """Run a stage; return ``done``, ``watched`` (its watch stopped it), or what went wrong."""
        limit = min(stage.seconds, self.left - 15)  # the archives take some seconds, too
        if limit < 20:
            self.say(f"{stage.name}: not begun, no time is left; the same command goes on")
            return "no time"
        self.say(f"{stage.name}: {' '.join(stage.words)}")
        begun = time.monotonic()
        with (self.out / "logs" / f"{stage.name}.log").open("a", encoding="utf-8") as log:
            child = subprocess.Popen(
                stage.words,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            reader = threading.Thread(target=self._copy, args=(stage.name, child.stdout, log), daemon=True)
            reader.start()
            state = self._wait(child, stage, begun + limit)
            reader.join(5)
        self.say(f"{stage.name}: {state} after {time.monotonic() - begun:.0f} s")
        return state

    def _wait(self, child: "subprocess.Popen[str]", stage: Stage, until: float) -> str:
        while child.poll() is None:
            watched = stage.watch is not None and stage.watch()
            if watched or time.monotonic() > until:
                _stop(child)
                return "watched" if watched else "late: stopped, the same command goes on"
            time.sleep(1)
        return "done" if child.returncode == 0 else f"failed with {child.returncode}"

    def _copy(self, name: str, stream: IO[str], log: IO[str]) -> None:
        told = -EVERY_S
        for line in stream:
            log.write(f"{time.strftime('%H:%M:%S')} {line}")
            log.flush()
            often = COUNTING.match(line) and time.monotonic() - told < EVERY_S
            if line.strip() and not often:
                told = time.monotonic()
                self.say(f"{name}| {line.rstrip()}")

    def collect(self, runs: Path) -> None:
        """Pack what is worth keeping; a file that would make the archive too large is named and left out."""
        files = sorted((p for p in runs.rglob("*") if _is_kept(p)), key=lambda p: (p.suffix == ".png", p))
        total = 0
        with tarfile.open(self.out / "kept.tar.gz", "w:gz") as kept:
            for file in files:
                size = file.stat().st_size // (1 if file.suffix == ".png" else 6)  # text packs to a sixth
                if total + size > MOST_BYTES:
                    self.say(f"left out of kept.tar.gz: {file}")
                    continue
                total += size
                kept.add(file, arcname=str(file.relative_to(runs)))
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as logs:
            logs.add(self.out / "logs", arcname="logs")


def _stop(child: "subprocess.Popen[str]") -> None:
    """Interrupt a command, and end it with all its children if it does not leave within 20 s."""
    child.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _is_kept(path: Path) -> bool:
    return path.is_file() and path.suffix in KEPT and not set(LEFT_OUT) & set(path.parts)
