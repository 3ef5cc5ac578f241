"""Both full-size configs on one GPU: do they train, how fast, in how much memory, where does the time go.

Every part is a process of its own with a time limit, so that one that fails or hangs costs no other. Example:

    PYTHONPATH=$PWD python docs/studies/full-size/measure.py --out runs/full-size

It leaves ``results.json`` (ratios against the targets, loss and scale of every step, what failed),
``log.txt`` (tables, kernels, waits) and ``rows.tar.gz`` (every rows file). Neither Ray nor MLflow is needed.

The numbers in README.md were made at the commit that it names. The script runs on today's code.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import collect, table

CONFIGS = {
    "r50": "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py",
    "vov": "experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py",
}
MINI = "experiments/configs/cmt_aqr_pillar_mini.py"
BATCH = {"r50": 4, "vov": 2}  # samples per GPU of the published CMT configs
PLANS = ("plain", "rects", "mask", "dense")
MATH = "math:aqr.*=none/sdpa_math;decoder.*.self=none/sdpa_efficient;decoder.*.cross=window/sdpa_math"
"""A bias for every pair of query and key, and scores kept for the backward pass: what runs out of memory."""

CLI = (sys.executable, "-m", "experiments.cli")
SPLITS = ("mini_train", "mini_val")


@dataclass(frozen=True)
class Asked:
    """What the caller wants: where, how long, how much."""

    out: Path
    work: Path
    budget: float
    tiny: bool
    device: str
    begun: float

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.time() - self.begun)

    def config(self, name: str) -> str:
        """Config of a model; the mini one in a rehearsal."""
        return MINI if self.tiny else CONFIGS[name]


class Log:
    """Runs parts, keeps what they say, and what became of them."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.parts = asked, dict[str, Any]()
        self._lock = threading.Lock()
        self._file = (asked.out / "log.txt").open("a", encoding="utf-8")

    def run(self, name: str, words: list[str], limit: float) -> bool:
        """Run a part; it is ended with all its children when its time, or that of the whole, is over."""
        limit = min(
            limit * (10 if self.asked.tiny else 1), self.asked.left()
        )  # a rehearsal's CPU may be busy
        if limit < 5:
            return self._note(name, "not begun: the budget was spent", 0.0, "")
        begun, path = time.time(), self.asked.work / f"{name}.log"
        with path.open("w", encoding="utf-8") as output:
            child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = child.wait(limit)
                state = "done" if code == 0 else f"ended with {code}"
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                state = f"ended after {limit:.0f} s"
        return self._note(
            name, state, time.time() - begun, path.read_text(encoding="utf-8", errors="replace")
        )

    def _note(self, name: str, state: str, seconds: float, output: str) -> bool:
        with self._lock:
            self.parts[name] = {"state": state, "seconds": round(seconds, 1)}
            print(f"{name}: {state}, {seconds:.0f} s", flush=True)
            self._file.write(f"\n=== {name}: {state}, {seconds:.1f} s\n{output}\n")
            self._file.flush()
            collect(self.asked.work / "rows", self.asked.out, self.parts)
        return state == "done"


def main() -> None:
    """Measure everything, part by part, the dearest question first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/full-size"), help="data, checkpoints, rows")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--only", nargs="*", default=[], help="parts: memory race look train batch")
    parser.add_argument("--rehearse", action="store_true", help="the mini config on the CPU, two steps")
    parser.add_argument("--train", nargs=2, metavar=("NAME", "CONFIG"), help="(used by the script itself)")
    given = parser.parse_args()
    device = "cpu" if given.rehearse else "cuda"
    asked = Asked(
        given.out.resolve(), given.work.resolve(), given.budget, given.rehearse, device, time.time()
    )
    if given.train:
        train(asked, *given.train)
        return
    measure(asked, given.only)


def measure(asked: Asked, only: list[str]) -> None:
    """Run the parts in the order of their worth, as long as the budget lasts."""
    for folder in (asked.out, asked.work):
        folder.mkdir(parents=True, exist_ok=True)
    log = Log(asked)
    if not only or "memory" in only:
        with ThreadPoolExecutor() as beside:  # neither making data nor peak memory is timed
            list(beside.map(lambda part: part(log), (make_data, memory)))
    for name, part in {"race": race, "look": look, "train": train_both, "batch": batch}.items():
        if not only or name in only:
            part(log)
    print(table(collect(asked.work / "rows", asked.out, log.parts)["summary"]))


def make_data(log: Log) -> None:
    """Generate frames of full size, and the objects to paste."""
    tiny, root = log.asked.tiny, log.asked.work / "data"
    scenes = "mini_train=1,mini_val=1" if tiny else "mini_train=8,mini_val=2"
    synth = ["data", "synth", "--out", str(root), "--frames", "2" if tiny else "4", "--scenes", scenes]
    rig = [
        "--rig",
        "mini" if tiny else "full",
        "--processes",
        str(max(1, min(12, (os.cpu_count() or 2) - 2))),
    ]
    if log.run("data", [*CLI, *synth, *rig], 150):
        cut = ["data", "objects", str(root), "--split", "mini_train", "--out", str(root / "objects")]
        log.run("objects", [*CLI, *cut], 60)


def memory(log: Log) -> None:
    """Peak memory of the largest training step, and which plan dies with how little."""
    size = ["--batch", "2", "--boxes", "83", "--steps", "2", "--calls", "0"]
    for gib in ("80", "40"):
        log.run(
            f"memory_{gib}",
            throughput(log.asked, "vov", f"memory_{gib}", (*PLANS, MATH), [*size, "--memory-gib", gib]),
            90,
        )


def race(log: Log) -> None:
    """Time the plans in turn at the config's batch, three rounds, and detection at batch 1."""
    steps = ["--steps", "2", "--calls", "1"] if log.asked.tiny else ["--steps", "12", "--calls", "20"]
    for name in CONFIGS:
        words = [*steps, "--rounds", "3"]
        log.run(f"race_{name}", throughput(log.asked, name, f"race_{name}", PLANS, words), 100)


def batch(log: Log) -> None:
    """Time the training step alone, at the batch of the published CMT configs."""
    steps = "2" if log.asked.tiny else "12"
    for name, size in BATCH.items():
        words = ["--steps", steps, "--calls", "0", "--rounds", "3", "--batch", str(size)]
        log.run(f"batch_{name}", throughput(log.asked, name, f"batch_{name}", PLANS, words), 100)


def look(log: Log) -> None:
    """Look closer at our plan: parts, kernels, waits."""
    steps = ["--steps", "2", "--calls", "1"] if log.asked.tiny else ["--steps", "12", "--calls", "12"]
    for name in CONFIGS:
        words = [*steps, "--per-module", "--profile", "--profile-syncs"]
        log.run(f"look_{name}", throughput(log.asked, name, f"look_{name}", ("rects",), words), 70)


def throughput(asked: Asked, name: str, folder: str, plans: tuple[str, ...], words: list[str]) -> list[str]:
    """Spell a call of ``biaswise throughput``."""
    if asked.tiny:  # on a CPU our kernel runs in an interpreter alone
        plans = tuple(plan for plan in plans if plan in ("plain", "dense")) or ("dense",)
    where = ["--device", asked.device, "--out", str(asked.work / "rows" / folder)]
    return [*CLI, "throughput", asked.config(name), "--plans", *plans, *words, *where]


def train_both(log: Log) -> None:
    """Train both configs side by side: what they learn counts here, not how fast."""
    with ThreadPoolExecutor() as beside:
        list(beside.map(lambda name: training(log, name), CONFIGS))


def training(log: Log, name: str) -> None:
    """Train a config on the generated frames, in a process."""
    words = [sys.executable, __file__, "--train", name, log.asked.config(name), "--work", str(log.asked.work)]
    log.run(
        f"train_{name}",
        [*words, "--out", str(log.asked.out), *(["--rehearse"] if log.asked.tiny else [])],
        170,
    )


def train(asked: Asked, name: str, config: str) -> None:
    """Run the trial: the project's own training, evaluation and rows."""
    from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
    from pipeline.runtime.session import LocalSession
    from pipeline.training.benchmark import named_plans
    from pipeline.training.trial import run_trial

    root, cuda = asked.work / "data", asked.device == "cuda"
    plan = named_plans(cuda)["mask" if cuda else "dense_mask"]  # what the configs say
    workers = 7 if cuda else 0
    settings = TrialSettings(
        study="full-size",
        config=config,
        plan=plan,
        data=DataSettings((str(root),), str(root), "v1.0-mini", *SPLITS, num_loader_workers=workers),
        train=TrainSettings(steps=200 if cuda else 2, batch_size=2, log_every=1, amp=cuda),
        device=asked.device,
        overrides=pasting(config, root / "objects"),
    )
    folder = asked.work / "rows" / f"train_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    run_trial(settings, LocalSession(folder, asked.device, quiet=True))


def pasting(config: str, objects: Path) -> tuple[tuple[str, str], ...]:
    """Point GT sampling to the objects that were cut out; leave it out if there are none."""
    from pipeline.detector.build import load_config

    cfg = load_config(config).to_dict()
    if "train_dataloader" not in cfg:
        return ()
    at = "train_dataloader.dataset.dataset.pipeline"
    entries = cfg["train_dataloader"]["dataset"]["dataset"]["pipeline"]
    place = next(i for i, entry in enumerate(entries) if entry["type"] == "UnifiedObjectSample")
    if (objects / "objects.parquet").exists():
        return ((f"{at}.{place}.db_sampler.info_path", json.dumps(str(objects))),)
    print("without GT sampling: there are no objects")
    return ((at, json.dumps([entry for i, entry in enumerate(entries) if i != place])),)


if __name__ == "__main__":
    main()
