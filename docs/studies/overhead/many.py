"""A study of 200 trials as small as trials get: what each costs beside its work, and what memory does.

The study runs as every study does (``run_study``: Ray, Tune, Ray Train, rows, report); a trial is one step of
the smallest model. Its processes are forked from one that has imported torch and the model's libraries (the
nursery of the chaos tests), because imports would be four fifths of 200 trials; ``measure.py`` has them in.
Beside it, every few seconds, memory and processor time of all processes are added up by what they are:

    PYTHONPATH=$PWD nice python docs/studies/overhead/many.py --trials 200 --out runs/many

The numbers in README.md were made at the commit that it names. The script runs on today's code.
"""

import argparse
import csv
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console

from experiments.recipes.mini import smoke
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder, write_json
from experiments.study.run_study import RunOptions, run_study
from pipeline.storage.temporary import temporary_folder
from pipeline.storage.trial_status import TrialState, read_status
from tests.chaos.cluster import await_nursery, environment, nursery, shim
from tests.smallest import SMALLEST

ROLES = {
    "gcs_server": "head",
    "raylet": "head",
    "dashboard": "head",
    "monitor.py": "head",
    "log_monitor": "head",
    "runtime_env": "head",
    "ImplicitFunc": "driver of trials",
    "func_trainable": "driver of trials",
    "TrainController": "controller",
    "RayTrainWorker": "trial",
    "IDLE": "idle",
}
"""Part of a command line (Ray names its processes by what they run) -> what the process is."""

POLL_INTERVAL_S = 3.0


def main() -> None:
    """Run the study, write ``summary.json``, ``memory.csv``, ``trials.csv`` and ``memory.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--sync", action="store_true", help="send rows to MLflow")
    parser.add_argument("--out", type=Path, default=Path("runs/many"))
    asked = parser.parse_args()
    chosen = trivial(asked.trials)
    options = RunOptions(asked.out, asked.concurrent, 1, tracking=asked.sync)
    watch = Watch(asked.out / "memory.csv")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it with a summary
    with temporary_folder("many") as scratch, environment(scratch), nursery(log := scratch / "log"):
        await_nursery(log)
        sys.executable = str(shim(scratch))  # what Ray takes for Python
        begun = time.time()
        watch.start()
        try:
            run_study(chosen, options, Console(width=150))
        except KeyboardInterrupt:  # what was done until then is measured all the same
            print("interrupted")
        watch.stop()
    summary = summarised(chosen, StudyFolder(asked.out.resolve() / chosen.name), begun, asked.concurrent)
    summary |= flatness(asked.out / "memory.csv")
    summary["cpu_seconds_by_role"] = watch.cpu
    write_json(asked.out / "summary.json", summary)
    draw(asked.out)
    print(json.dumps(summary, indent=1))


def trivial(trials: int) -> Recipe:
    """Return a study of so many trials of one step, on the generated data of ``smoke``."""
    base = smoke().trials[0]
    base = replace(
        base,
        study="many",
        train=replace(base.train, steps=1, checkpoint_every=1),
        overrides=SMALLEST,
    )
    return replace(
        smoke(),
        name="many",
        question="What does a trial cost beside its work?",
        cost=f"{trials} trials of one step",
        trials=tuple(replace(base, seed=seed) for seed in range(trials)),
        rule=None,
        sites=(),
    )


class Watch(threading.Thread):
    """Writes the memory of this process and of all that it started, by role, every few seconds.

    Args:
        path: the table: seconds, role, processes, PSS in MiB.

    Processor time of a process that ended is what it was when it was last seen.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path, self._over = path, threading.Event()
        self._known: dict[int, tuple[str, float]] = {}

    @property
    def cpu(self) -> dict[str, float]:
        """Seconds of processor time by role."""
        total: dict[str, float] = {}
        for role, seconds in self._known.values():
            total[role] = total.get(role, 0.0) + seconds
        return {role: round(seconds, 1) for role, seconds in sorted(total.items())}

    def run(self) -> None:
        """Look until told to stop."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with self._path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("seconds", "role", "processes", "pss_mib"))
            while not self._over.wait(POLL_INTERVAL_S):
                found: dict[str, list[float]] = {}
                for one in looked_at(os.getpid()):
                    found.setdefault(one.role, []).append(one.pss_mib)
                    self._known[one.pid] = (one.role, one.cpu_s)
                for role, sizes in sorted(found.items()):
                    row = (round(time.monotonic() - begun, 1), role, len(sizes), round(sum(sizes), 1))
                    table.writerow(row)
                file.flush()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


@dataclass(frozen=True)
class Process:
    """A process as it was seen: what it is, its memory, the processor time it has used."""

    pid: int
    role: str
    pss_mib: float
    cpu_s: float


def looked_at(pid: int) -> Iterator[Process]:
    """Yield a process and its descendants as they are now."""
    for member in family(pid):
        try:
            place = Path("/proc") / str(member)
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            rollup = (place / "smaps_rollup").read_text()
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        size = int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 1024
        role = "study driver" if member == pid else role_of(command)
        yield Process(member, role, size, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def role_of(command: str) -> str:
    """Say what a process of Ray is, by its command line."""
    return next((role for part, role in ROLES.items() if part in command), "other")


def family(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    yield pid
    for child in [child for child, parent in parents.items() if parent == pid]:
        yield from family(child)


def summarised(chosen: Recipe, folder: StudyFolder, begun: float, concurrent: int) -> dict[str, Any]:
    """Return what trials took, and what lay between them."""
    names = [name for name in chosen.named_trials() if folder.state(name) == TrialState.COMPLETE]
    sessions = [read_status(folder.trial(name)).sessions for name in names]
    starts = sorted(session[0].start for session in sessions)
    ends = sorted(session[-1].end or math.nan for session in sessions)
    seconds = [sum((one.end or one.start) - one.start for one in session) for session in sessions]
    ended = [round((session[-1].end or math.nan) - begun, 1) for session in sessions]
    with (folder.path.parent / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("ended_s", "seconds"), *zip(ended, seconds, strict=True)])
    span = ends[-1] - starts[0]
    return {
        "trials": len(names),
        "concurrent": concurrent,
        "seconds_first_start_to_last_end": round(span, 1),
        "seconds_before_first_start": round(starts[0] - begun, 1),
        "seconds_per_trial_of_the_study": round(span / len(names), 2),
        "seconds_in_a_trial_median": round(median(seconds), 2),
        "seconds_in_a_trial_first_20_mean": round(mean(seconds[:20]), 2),
        "seconds_in_a_trial_last_20_mean": round(mean(seconds[-20:]), 2),
        "seconds_of_a_slot_between_trials": round((span * concurrent - sum(seconds)) / len(names), 2),
    }


def flatness(path: Path) -> dict[str, object]:
    """Return, per role that lives throughout, MiB in the first and last quarter and the slope."""
    found: dict[str, object] = {}
    for role in ("study driver", "head", "driver of trials", "other"):
        seconds, sizes = curve(path, role)
        if len(sizes) < 8:
            continue
        quarter = len(sizes) // 4
        found[f"{role}, MiB"] = {
            "second quarter": round(float(np.median(sizes[quarter : 2 * quarter])), 1),
            "last quarter": round(float(np.median(sizes[-quarter:])), 1),
            "MiB per hour after the first quarter": round(
                float(np.polyfit(seconds[quarter:], sizes[quarter:], 1)[0]) * 3600, 1
            ),
        }
    return found


def curve(path: Path, role: str) -> tuple[list[float], list[float]]:
    """Return seconds and MiB of a role."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["role"] == role]
    return [float(line["seconds"]) for line in lines], [float(line["pss_mib"]) for line in lines]


def draw(out: Path) -> None:
    """Draw memory over time, and the seconds of each trial below."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for role in ("study driver", "head", "driver of trials", "controller", "trial", "idle", "other"):
        seconds, sizes = curve(out / "memory.csv", role)
        if sizes:
            above.plot(np.divide(seconds, 60), sizes, label=role, linewidth=1)
    above.set(ylabel="PSS of all processes, MiB", yscale="log")
    above.legend(ncol=2, fontsize="small")
    with (out / "trials.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    ended = [float(line["ended_s"]) / 60 for line in lines]
    below.plot(ended, [float(line["seconds"]) for line in lines], ".", markersize=3)
    below.set(xlabel="minutes", ylabel="seconds in a trial", ylim=(0, None))
    figure.savefig(out / "memory.png", dpi=120)


if __name__ == "__main__":
    main()
