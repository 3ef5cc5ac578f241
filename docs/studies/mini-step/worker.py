"""Times the demo's model of one version of the code, or runs a whole trial of the demo, when it is asked.

``measure.py`` starts it with PYTHONPATH set to the version, whose names ``before`` or ``after`` knows.
"""

import importlib
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "step"))
from versions import answer_requests  # the step study's

BATCHES, DETECTIONS = 4, 2  # batches that steps take in turn; detections of a plan in a round
BIASES = {"none": ("none",) * 3, "one": ("none", "none", "window"), "all": ("window",) * 3}
"""Plan -> the bias of each decoder layer."""

Times = dict[str, tuple[float, float]]
"""What was done -> milliseconds of CPU, of wall clock."""


class Version:
    """One version of the code.

    Args:
        name: ``before`` or ``after``.
        data: the demo's dataset.
        folder: where its trials are kept.
    """

    def __init__(self, name: str, data: Path, folder: Path) -> None:
        self._code: Any = importlib.import_module(name)
        self._data, self._folder = data, folder
        self._plans = {plan: self._code.plan_of(biases) for plan, biases in BIASES.items()}

    def build(self) -> dict[str, float]:
        """Build the model; return the loss of a step under each plan, which all versions share."""
        self._model = self._code.Model(self._data, self._plans["none"], self._folder / "model", BATCHES)
        losses = {}
        for plan in self._plans.values():
            self._visit(plan, 0)  # the first passes allocate and initialise
        for name, plan in self._plans.items():
            losses[name] = self._visit(plan, 0)[0]
        return losses

    def round(self, index: int) -> dict[str, Times]:
        """Time every plan, in an order that the index decides."""
        order = random.Random(index).sample(sorted(self._plans), len(self._plans))
        return {name: self._visit(self._plans[name], index)[1] for name in order}

    def _visit(self, plan: Any, index: int) -> tuple[float, Times]:
        model = self._model
        model.use(plan)
        model.model.train()
        self._code.seed_everything(0, index)
        losses: list[float] = []
        times = {"step": _timed(lambda: losses.append(model.step(index)))}
        found = [_timed(model.detect) for _ in range(DETECTIONS)]
        times["detection"] = mean(cpu for cpu, _ in found), mean(wall for _, wall in found)
        model.model.eval()
        times["evaluation"] = _timed(model.evaluate)
        return losses[0], times

    def trial(self, steps: int) -> dict[str, float]:
        """Run a whole trial with the bias in all layers; return what this process took since its start."""
        folder = self._folder / "trial"
        self._code.run(self._data, self._plans["all"], folder, steps)
        return {**_used(), **_scores(folder / "rows.jsonl")}

    def cohort(self, steps: int) -> dict[str, float]:
        """Run whole trials together, four that have the bias in the first layer; return what each took."""
        others = product(("none", "window"), repeat=2)
        plans = [self._code.plan_of(("window", *biases)) for biases in others]
        self._code.run_together(self._data, plans, self._folder / "cohort", steps)
        return {key: value / len(plans) for key, value in _used().items()}


def _used() -> dict[str, float]:
    """Return the CPU seconds and the peak memory of this process since its start."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"cpu_s": sum(one.ru_utime + one.ru_stime for one in used), "peak_gib": used[0].ru_maxrss / 2**20}


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds of CPU and of wall clock of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def _scores(path: Path) -> dict[str, float]:
    """Return the means over the sensor conditions of what a trial scored, per cent."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # a row of one scene, or of a draw of scenes, names it
    whole = [row for row in rows if not row["scene"] and row.get("draw") is None]
    return {
        name: mean(100 * row["value"] for row in whole if row["metric"] == name) for name in ("NDS", "mAP")
    }


def main() -> None:
    """Answer requests such as ``round 3`` with a line of JSON each."""
    name, data, folder = sys.argv[1:]
    torch.set_num_threads(1)
    answer_requests(Version(name, Path(data), Path(folder)))


if __name__ == "__main__":
    main()
