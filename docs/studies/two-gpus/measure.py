"""One trial on one GPU and on two of the same host: samples per second, plans, gradients.

Makes generated full-size data, runs each config's trial under Ray Train with one worker and with two over
NCCL (the same batch per GPU), compares gradients (``gradients.py``), and writes ``rows.jsonl``,
``summary.json`` and tables beside them. Parts that fail are named in the summary; the others are kept.

    PYTHONPATH=$PWD python docs/studies/two-gpus/measure.py --out runs/two-gpus
    PYTHONPATH=$PWD python docs/studies/two-gpus/measure.py --out runs/try --cpu    # gloo, a tiny model

The numbers in README.md were made at the commit that it names. The script runs on today's code.
"""

import argparse
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradients import EXACT, NECK, compare

from experiments.storage.study_folder import write_json
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
from pipeline.metrics.rows import Row, append_rows, read_rows, select
from tests.smallest import SMALLEST

CONFIGS = {
    "r50": "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py",
    "vov": "experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py",
}
MINI = {"mini": "experiments/configs/cmt_aqr_pillar_mini.py"}

VERSION = "v1.0-trainval"
"""Its splits have scenes enough for every core; the frames repeat after ``--frames`` samples."""

TARGET = 1.8
"""Times as many samples per second on two GPUs."""

NCCL = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast stays off unless the caller says otherwise: two GPUs gain nothing by it, and on a shared
host a program that dies while it uses it can take the other GPUs along."""

NUMBERS = ("train_samples_per_s", "step_ms", "data_wait_ms", "peak_allocated_gib", "inference_latency_p50_ms")


class Late(BaseException):
    """The time is up; no part may swallow it."""


@dataclass
class Report:
    """What was found so far; written after every part.

    Attributes:
        folder: where ``summary.json`` goes.
        found: its content.
    """

    folder: Path
    found: dict[str, Any] = field(default_factory=lambda: {"seconds": {}, "failed": {}})

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part; note why it failed, and let the next one run."""
        begun = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            yield
        except Late:
            self.found["failed"][name] = "the time was up"
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the other parts still count
            self.found["failed"][name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            self.found["seconds"][name] = round(time.monotonic() - begun, 1)
            print(f"{name}: {self.found['seconds'][name]} s", flush=True)
            write_json(self.folder / "summary.json", self.found)


def main() -> None:
    """Make data, run trials, compare gradients, print a table."""
    asked = arguments()
    for key, value in NCCL.items():
        os.environ.setdefault(key, value)
    asked.out.mkdir(parents=True, exist_ok=True)
    report = Report(asked.out)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(asked.seconds)
    try:
        with report.part("machine"):
            report.found["machine"] = machine()
        with report.part("data"):
            report.found["data"] = make_data(asked)
        if asked.only != "gradients":
            run_trials(asked, report)
        if asked.only != "trials":
            with report.part("gradients"):
                exact = {name: settings_of(asked, name, 1, exact=True) for name in asked.configs}
                report.found["gradients"] = compare(exact, plans(not asked.cpu), asked.out / "gradients")
    except Late:
        print(f"stopped after {asked.seconds} s; what is done is in {asked.out}")
    finally:
        signal.alarm(0)
        report.found["trials"] = summarise(asked)
        write_json(asked.out / "summary.json", report.found)
    show(report.found)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/two-gpus"), help="a new folder (%(default)s)")
    parser.add_argument("--configs", nargs="+", choices=[*CONFIGS], default=[*CONFIGS])
    parser.add_argument("--batch", type=int, default=2, help="frames per GPU and step (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="the first five are not counted (%(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="generated frames, one a scene (%(default)s)")
    parser.add_argument("--loaders", type=int, default=10, help="loader processes per GPU (%(default)s)")
    parser.add_argument("--only", choices=["trials", "gradients"], help="leave the other part out")
    parser.add_argument("--seconds", type=int, default=540, help="stop after that (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="try the script: gloo, a tiny model, small data")
    asked = parser.parse_args()
    if asked.cpu:
        asked.configs, asked.batch, asked.steps, asked.frames, asked.loaders = [*MINI], 1, 6, 4, 0
    asked.out = asked.out.resolve()
    return asked


def _late(*_: object) -> None:
    raise Late


def machine() -> dict[str, Any]:
    """Name the GPUs, and what of the environment NCCL reads."""
    import torch

    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {
        "gpus": gpus,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else "",
        "environment": nccl_environment(),
    }


def nccl_environment() -> dict[str, str]:
    """Return the variables of this process that concern NCCL and multicast."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith("NCCL_") or k in NCCL}


def make_data(asked: argparse.Namespace) -> dict[str, Any]:
    """Generate frames in as many processes as there are cores; one frame a scene."""
    from pipeline.data.synthetic import generate
    from pipeline.data.synthetic.sensor_rig import FULL, MINI

    scenes, cores = {"train": asked.frames, "val": 1}, multiprocessing.cpu_count()
    rig = MINI if asked.cpu else FULL
    if not (asked.out / "data" / VERSION).is_dir():
        generate(asked.out / "data", 7, VERSION, 1, scenes, min(cores, asked.frames + 1), rig=rig)
    return {"rig": rig.name, "frames": asked.frames, "version": VERSION}


def settings_of(asked: argparse.Namespace, name: str, workers: int, exact: bool = False) -> TrialSettings:
    """Return a trial: of the config on ``workers`` GPUs, or the exact one whose gradients are compared."""
    root, cuda = str(asked.out / "data"), not asked.cpu
    small = () if cuda else SMALLEST  # there the script itself is tried, nothing is measured
    return TrialSettings(
        study="two-gpus",
        config=(CONFIGS | MINI)[name],
        plan=plan(cuda, "window", "window"),
        data=DataSettings((root,), root, VERSION, "train", "val", 0 if exact else asked.loaders),
        train=TrainSettings(
            steps=2 if exact else asked.steps,
            batch_size=1 if exact else asked.batch,
            augment=False,  # the config's would want an object database
            checkpoint_every=10_000,
            log_every=1 if exact else 10,
            amp=cuda and not exact,
        ),
        num_workers=workers,
        torch_threads=4 if cuda else 1,
        device="cuda" if cuda else "cpu",
        overrides=(*small, *(EXACT if exact else ()), *(NECK if exact and cuda else ())),
    )


def plan(cuda: bool, even: str, odd: str) -> Plan:
    """Return a plan with a bias in decoder layers 0, 2, 4 and one in 1, 3, 5; rects where there is a GPU."""
    own, masked = ("sdpa_efficient", "rects") if cuda else ("sdpa_math", "sdpa_math")
    sites = {
        "aqr.*": f"local/{masked}",
        "decoder.*.self": f"none/{own}",
        "decoder.[024].cross": f"{even}/{masked}",
        "decoder.[135].cross": f"{odd}/{masked}",
    }
    return Plan.of(sites)


def plans(cuda: bool) -> dict[str, Plan]:
    """Return the plans of the cohort whose gradients are compared."""
    biases = {"window": ("window", "window"), "none": ("none", "none")}
    biases |= {"even": ("window", "none"), "odd": ("none", "window")}
    return {name: plan(cuda, *both) for name, both in biases.items()}


def run_trials(asked: argparse.Namespace, report: Report) -> None:
    """Run every config on one worker and on two, all in one session of Ray."""
    from pipeline.ray_train.local_cluster import prepare_ray, ray_session

    prepare_ray()
    from pipeline.ray_train.cohort_run import CohortRun
    from pipeline.ray_train.launch import run_under_ray
    from pipeline.storage.trial_status import read_status

    with report.part("ray"), ray_session(cpus=8, gpus=0 if asked.cpu else 2):
        report.found["machine"]["environment_of_workers"] = _remote_environment()
        for name in asked.configs:
            for workers in (1, 2):
                with report.part(f"{name} on {workers}"):
                    folder = trial_folder(asked, name, workers)
                    run_under_ray(CohortRun({folder.resolve(): settings_of(asked, name, workers)}))
                    if (status := read_status(folder)).error:
                        print(status.details)
                        raise RuntimeError(status.error)
                    append_rows(asked.out / "rows.jsonl", read_rows(folder / "rows.jsonl"))


def _remote_environment() -> dict[str, str]:
    import ray

    found: dict[str, str] = ray.get(ray.remote(num_cpus=1)(nccl_environment).remote())
    return found


def trial_folder(asked: argparse.Namespace, name: str, workers: int) -> Path:
    """Return where a trial writes."""
    return asked.out / "trials" / f"{name}_{workers}"


def summarise(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of every trial that has them, and what two GPUs gain."""
    found: dict[str, Any] = {}
    for name in asked.configs:
        held: dict[int, list[Row]] = {}
        for workers in (1, 2):
            path = trial_folder(asked, name, workers) / "rows.jsonl"
            held[workers] = read_rows(path) if path.exists() else []
        found[name] = {f"on_{workers}": numbers(rows, workers, asked) for workers, rows in held.items()}
        one, two = found[name]["on_1"], found[name]["on_2"]
        if "step_ms" in one and "step_ms" in two:
            plans = {row.plan for rows in held.values() for row in rows}
            found[name] |= {
                "ratio": two["train_samples_per_s"]["value"] / one["train_samples_per_s"]["value"],
                "ratio_without_waiting_for_data": two["samples_per_s_of_steps"]
                / one["samples_per_s_of_steps"],
                "target": TARGET,
                "plans_equal": len(plans) == 1,
                "plan": sorted(plans),
            }
    return found


def numbers(rows: list[Row], workers: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Return median, spread and count of what a trial timed, and its first and last loss."""
    found: dict[str, Any] = {}
    for metric in NUMBERS:
        for row in select(rows, metric=metric):
            found[metric] = {"value": row.value, "half_iqr60": row.half_iqr60, "n": row.n}
    if "step_ms" in found:
        found["samples_per_s_of_steps"] = 1e3 * asked.batch * workers / found["step_ms"]["value"]
    losses = sorted((row.step, row.value) for row in select(rows, metric="loss"))
    return found | ({"loss_first": losses[0][1], "loss_last": losses[-1][1]} if losses else {})


def show(found: dict[str, Any]) -> None:
    """Print what the summary says, shortly."""
    print(f"\n{' + '.join(found.get('machine', {}).get('gpus', [])) or 'CPU'}")
    for name, held in found["trials"].items():
        for workers in ("on_1", "on_2"):
            cells = [
                f"{metric} {held[workers][metric]['value']:.4g}"
                for metric in NUMBERS
                if metric in held[workers]
            ]
            print(f"{name} {workers}: {', '.join(cells) or 'nothing'}")
        if "ratio" in held:
            print(
                f"{name}: {held['ratio']:.3f} x samples/s (target {TARGET}), "
                f"{held['ratio_without_waiting_for_data']:.3f} x without waiting for data; "
                f"plans equal: {held['plans_equal']}"
            )
    for name, held in found.get("gradients", {}).items():
        print(
            f"{name} gradients of {len(held['arms'])} arms, relative per tensor: two ranks against joint "
            f"batch at most {held['two_ranks_against_joint_batch']['max']:.1e} ({held['worst_tensor']}), "
            f"joint against itself {held['joint_batch_against_itself']['max']:.1e}, "
            f"half against joint (median) {held['one_half_against_joint_batch']['median']:.1e}; "
            f"agree: {held['agree']}; asking for a notice {held['notice_check_us']:.0f} us a step"
        )
    for part, why in found["failed"].items():
        print(f"FAILED {part}: {why}")
    print(f"seconds: {found['seconds']}")


if __name__ == "__main__":
    main()
