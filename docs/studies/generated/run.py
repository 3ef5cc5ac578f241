"""Train a full-size detector on generated data and run its study, stage by stage, each with a time limit.

    PYTHONPATH=$PWD python docs/studies/generated/run.py branches pretrain --seconds 590 --out runs/generated
    PYTHONPATH=$PWD python docs/studies/generated/run.py study --seconds 590 --out runs/generated

The same command goes on where the one before was stopped. A stage is one command of `biaswise`, which is
printed; ``--gpus N`` spreads it over N GPUs. A stage that fails or is late leaves the others their turn.
``--out`` gets ``kept.tar.gz`` (rows, reports, pictures, tables; no weights) and ``logs.tar.gz`` at the end of
every call. ``--tiny`` rehearses on a CPU with the mini.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from curve import draw, learning_curve

CLI = (sys.executable, "-m", "experiments.cli")
NCCL = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast stays off: on a shared host a program that dies while it uses it can take GPUs along."""

FRAMES, LR_SCALE = 24, 4.0
"""Frames of a step on several GPUs, of all together, and the factor on the config's learning rate then."""

START_S = 45.0
"""Start of a training whose data are there, and capture of its graphs."""

SLACK = 0.1
"""Share of ``--pretrain-seconds`` by which a pretraining may be late."""

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


def branches(runner: Runner, asked: argparse.Namespace) -> str:
    """Train the branches of the detector, without its decoder."""
    words = [*CLI, "train", asked.branches, "--runs-dir", str(asked.runs), *spread(asked)]
    words += ["--set", f"train.steps={asked.branch_steps}", *together(asked), *asked.pretrain_set]
    return runner.run(Stage("branches", words, asked.branch_seconds))


def pretrain(runner: Runner, asked: argparse.Namespace) -> str:
    """Train the detector; take fewer steps from the start if they would not fit into the time."""
    plan = asked.runs / "pretrain.json"
    steps = json.loads(plan.read_text())["steps"] if plan.exists() else asked.steps
    state = ""
    asked.runs.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        plan.write_text(json.dumps({"steps": steps}))
        fits = Fits(asked, steps)
        state = runner.run(
            Stage("pretrain", pretrain_words(asked, steps), (1 + SLACK) * asked.pretrain_seconds, fits)
        )
        if state != "watched":
            break
        steps = fits.steps_that_fit
        runner.say(f"pretrain: {fits.sentence}; it starts again with {steps} steps")
    found = learning_curve(asked.runs / asked.pretraining)
    if found:
        draw(found, asked.out)
        runner.say(f"learning curve, step: mAP: {', '.join(f'{s}: {m:.3f}' for s, m in found)}")
    return state


def pretrain_words(asked: argparse.Namespace, steps: int) -> list[str]:
    """Return the command that trains the detector, from the branches if they were trained."""
    words = [*CLI, "train", asked.pretraining, "--runs-dir", str(asked.runs), *spread(asked)]
    words += ["--measure-every", str(max(1, steps // 5 + 1))]
    trained = newest_weights(asked.runs, asked.branches)
    words += ["--init", str(trained)] if trained is not None else []
    return [*words, "--set", f"train.steps={steps}", *together(asked), *asked.pretrain_set]


def spread(asked: argparse.Namespace) -> list[str]:
    """Return the options of a training on all GPUs."""
    return ["--gpus-per-trial", str(asked.gpus)] if asked.gpus > 1 else ["--local"]


def together(asked: argparse.Namespace) -> list[str]:
    """Return the settings of a training on all GPUs; on one they are the recipe's."""
    return [f"train.batch_size={FRAMES}", f"train.lr_scale={LR_SCALE}"] if asked.gpus > 1 else []


def newest_weights(runs: Path, recipe: str) -> Path | None:
    """Return the newest weights that the trainings of a recipe have left; None: there are none."""
    found = runs.glob(f"{recipe}/trials/*/weights.safetensors")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


class Fits:
    """Watches a training: after ``AFTER`` steps it tells whether all fit into the time.

    Args:
        asked: the command line.
        steps: of the training.
    """

    WARM, AFTER = 60, 160
    """Steps before the measured ones, in which graphs are captured, and the last of these."""

    def __init__(self, asked: argparse.Namespace, steps: int) -> None:
        self._asked, self._steps, self._decided = asked, steps, False
        self._begun = time.monotonic()
        self._seen: list[tuple[int, float]] = []  # step, when it was seen
        self.steps_that_fit, self.sentence = steps, ""

    def __call__(self) -> bool:
        """Return whether the training is to be stopped, because it takes too long."""
        if self._decided:
            return False
        self._look()
        if not self._seen or self._seen[-1][0] < self.AFTER:
            return False
        self._decided = True
        warm = [one for one in self._seen if self.WARM <= one[0] < self.AFTER]
        if not warm:  # it goes on from a checkpoint: its steps were decided before
            return False
        (first, began), (last, ended) = warm[0], self._seen[-1]
        each, passed = (ended - began) / (last - first), ended - self._begun
        rest = self._asked.pretrain_seconds - self._asked.evaluation_seconds - passed
        if (self._steps - last) * each <= rest:
            return False
        self.steps_that_fit = int((rest - START_S) / each)
        if rest > (self._steps - last) * each - SLACK * self._asked.pretrain_seconds:
            return False  # a little late is better than a second start
        self.sentence = f"a step takes {1e3 * each:.0f} ms, {self._steps} of them do not fit"
        return self.steps_that_fit > self.AFTER

    def _look(self) -> None:
        folder = self._asked.runs / self._asked.pretraining
        newest = max(folder.glob("trials/*/rows.jsonl"), key=lambda p: p.stat().st_mtime, default=None)
        steps = [] if newest is None else [row["step"] for row in _rows(newest) if row["metric"] == "loss"]
        if steps and (not self._seen or steps[-1] > self._seen[-1][0]):
            self._seen.append((steps[-1], time.monotonic()))


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read a rows file that is being written."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def study(runner: Runner, asked: argparse.Namespace) -> str:
    """Run the study from the newest weights of the pretraining, then its report with pictures."""
    weights = newest_weights(asked.runs, asked.pretraining)
    if weights is None:
        return "failed: the pretraining has left no weights"
    words = [*CLI, "study", "run", asked.study, "--runs-dir", str(asked.runs), "--init", str(weights)]
    words += ["--concurrent", str(asked.gpus), *asked.study_options]
    state = runner.run(Stage("study", words, asked.study_seconds))
    runner.run(
        Stage(
            "report", [*CLI, "study", "report", asked.study, "--figures", "--runs-dir", str(asked.runs)], 90
        )
    )
    return state


def scaling(runner: Runner, asked: argparse.Namespace) -> str:
    """Measure how a trial and cohorts scale over the GPUs of this machine, r50 and then vov."""
    script = str(Path(__file__).resolve().parents[1] / "scaling" / "measure.py")
    ranks = [str(2**power) for power in range(asked.gpus.bit_length())]
    states = []
    for name in ("mini",) if asked.tiny else ("r50", "vov"):
        words = [sys.executable, script, name, "--ranks", *ranks, "--out", str(asked.runs / "scaling" / name)]
        words += ["--seconds", str(asked.scaling_seconds), *asked.scaling_options]
        states.append(runner.run(Stage(f"scaling_{name}", words, asked.scaling_seconds + 60)))
    return "done" if set(states) == {"done"} else "; ".join(states)


STAGES = {"branches": branches, "pretrain": pretrain, "study": study, "scaling": scaling}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", choices=[*STAGES])
    parser.add_argument("--model", choices=("r50", "vov"), default="r50")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=590.0, help="of this call (%(default)s)")
    parser.add_argument("--branch-steps", type=int, default=600, help="of the branches (%(default)s)")
    parser.add_argument("--branch-seconds", type=float, default=300.0, help="data included (%(default)s)")
    parser.add_argument("--steps", type=int, default=1600, help="of the pretraining (%(default)s)")
    parser.add_argument("--pretrain-seconds", type=float, default=500.0, help="data included (%(default)s)")
    parser.add_argument("--pretrain-set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--evaluation-seconds", type=float, default=40.0, help="kept free (%(default)s)")
    parser.add_argument("--study-seconds", type=float, default=590.0)
    parser.add_argument("--study-options", nargs=argparse.REMAINDER, default=[], help="of study run; last")
    parser.add_argument("--scaling-seconds", type=float, default=110.0, help="of each model (%(default)s)")
    parser.add_argument("--scaling-options", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/generated"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--tiny", action="store_true", help="the mini on a CPU, a few steps")
    asked = parser.parse_args()
    asked.branches = "smoke_waves" if asked.tiny else f"branches_{asked.model}"
    asked.pretraining = "smoke" if asked.tiny else f"pretrain_{asked.model}"
    asked.study = "smoke_waves" if asked.tiny else f"{asked.model}_generated"
    asked.out, asked.runs = asked.out.resolve(), asked.runs.resolve()
    return asked


def main() -> int:
    """Run the stages; return 1 if one is not done."""
    asked = arguments()
    for key, value in NCCL.items():
        os.environ.setdefault(key, value)
    asked.out.mkdir(parents=True, exist_ok=True)
    runner, states = Runner(asked.out, asked.seconds), {}
    for name in asked.stages:
        try:
            states[name] = STAGES[name](runner, asked)
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # the stages after it have their turn, and the archives are made
            states[name] = f"failed: {type(error).__name__}: {error}"
    (asked.out / "states.json").write_text(json.dumps(states, indent=1) + "\n")
    runner.collect(asked.runs)
    runner.say(json.dumps(states))
    return int(any(state != "done" for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
