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
import sys
import time
from pathlib import Path
from typing import Any

from curve import draw, learning_curve, scores, write
from stages import Runner, Stage

CLI = (sys.executable, "-m", "experiments.cli")
NCCL = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast stays off: on a shared host a program that dies while it uses it can take GPUs along."""

FRAMES = 8
"""Frames of a step on each GPU."""

START_S = 45.0
"""Start of a training whose data are there, and capture of its graphs."""

SLACK = 0.1
"""Share of ``--pretrain-seconds`` by which a pretraining may be late."""


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
    if scores(found):
        write(found, asked.out)
        draw({asked.pretraining: found}, asked.out)
        runner.say(f"learning curve, step: mAP: {', '.join(f'{s}: {m:.3f}' for s, m in scores(found))}")
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
    return [f"train.batch_size={FRAMES * asked.gpus}"] if asked.gpus > 1 else []


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


def ranks(runner: Runner, asked: argparse.Namespace) -> str:
    """Run trials of the study over all GPUs as ranks of one trial; compare those with the study's own."""
    weights = newest_weights(asked.runs, asked.pretraining)
    if weights is None:
        return "failed: the pretraining has left no weights"
    spread_out = asked.runs / f"over_{asked.gpus}"
    words = [*CLI, "study", "run", asked.study, "--runs-dir", str(spread_out), "--init", str(weights)]
    words += ["--gpus-per-trial", str(asked.gpus), "--concurrent", "1", *asked.study_options]
    state = runner.run(Stage("ranks", words, asked.ranks_seconds))
    script = str(Path(__file__).resolve().parents[1] / "two-gpus" / "rows.py")
    pair = [str(folder / asked.study) for folder in (asked.runs, spread_out)]
    compared = runner.run(Stage("rows", [sys.executable, script, *pair], 60))
    return state if compared == "done" else f"{state}; rows: {compared}"


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


STAGES = {"branches": branches, "pretrain": pretrain, "study": study, "ranks": ranks, "scaling": scaling}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", choices=[*STAGES])
    parser.add_argument("--model", choices=("r50", "vov"), default="r50")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=590.0, help="of this call (%(default)s)")
    parser.add_argument("--branch-steps", type=int, default=500, help="of the branches (%(default)s)")
    parser.add_argument("--branch-seconds", type=float, default=300.0, help="data included (%(default)s)")
    parser.add_argument("--steps", type=int, default=1300, help="of the pretraining (%(default)s)")
    parser.add_argument("--pretrain-seconds", type=float, default=500.0, help="data included (%(default)s)")
    parser.add_argument("--pretrain-set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--evaluation-seconds", type=float, default=40.0, help="kept free (%(default)s)")
    parser.add_argument("--study-seconds", type=float, default=590.0)
    parser.add_argument("--study-options", nargs=argparse.REMAINDER, default=[], help="of study run; last")
    parser.add_argument("--ranks-seconds", type=float, default=420.0, help="(%(default)s)")
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
