"""How many more trials an hour does a study run on n GPUs of one host than on one?

Runs the first trials of a recipe under Ray Tune and Ray Train, as `biaswise study run` does: n cohorts side
by side with a GPU each, then one cohort on one GPU, of as many arms. Trials are short: few steps on eight
generated frames, from fresh weights. ``summary.json`` and ``trials.csv`` say what their time went to; they
are written after each way, and when ``--seconds`` are over. The same command begins a way that was cut anew.

    PYTHONPATH=$PWD python docs/studies/scaling/study.py --gpus 2 --out runs/scaling/study

and to try it on a CPU, with two places for two GPUs: ``... study.py --recipe smoke_waves --arms 2``.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1] / "packing"))
from measure import NCCL  # of this folder
from trials import ended_trials, hourly, run_first  # the packing study's

from experiments.packing.policy import PackingRequest
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.recipe import Recipe, SyntheticDataset
from experiments.recipes.registry import recipe
from experiments.storage.study_folder import StudyFolder, write_json
from experiments.study.preflight.checks import check_data
from experiments.study.preflight.datasets import make_datasets
from pipeline.ray_train.local_cluster import prepare_ray

FEW = SyntheticDataset(
    "data/full_few", seed=401, frames_per_scene=2, scenes=(("train", 4), ("mini_val", 1)), rig="full"
)
"""Eight frames that a study at full size trains on here, and two to evaluate."""


def main() -> None:
    """Run both ways, and say it in a line."""
    for key, value in NCCL.items():
        os.environ.setdefault(key, value)
    prepare_ray()
    asked, console = arguments(), Console(width=150)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(asked.seconds)
    chosen = short(recipe(asked.recipe), asked.steps)
    try:
        make_datasets(chosen.datasets, console)
        check_data(chosen)
        for gpus in (asked.gpus, 1):  # in this order: what is slow the first time counts against many GPUs
            trials, folder = gpus * asked.arms, StudyFolder((asked.out / way(gpus)).resolve())
            if len(ended_trials(folder.path, way(gpus), chosen.rule or DecisionRule())) < trials:
                shutil.rmtree(folder.path, ignore_errors=True)  # with a stop in between its rate says nothing
                run_first(chosen, folder, PackingRequest(gpus, asked.arms), trials, console)
            sum_up(asked, chosen)
    except KeyboardInterrupt:
        console.print(f"stopped after {asked.seconds} s; the same command goes on")
    finally:
        signal.alarm(0)
        console.print(json.dumps(sum_up(asked, chosen), indent=1), highlight=False)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="r50_generated", help="%(default)s")
    parser.add_argument("--gpus", type=int, default=2, help="%(default)s")
    parser.add_argument("--arms", type=int, default=4, help="of a cohort (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of a trial on GPUs (%(default)s)")
    parser.add_argument("--seconds", type=int, default=150, help="of this call (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling/study"))
    return parser.parse_args()


def stop(*_: object) -> None:
    """End the call as Ctrl-C does."""
    raise KeyboardInterrupt


def short(chosen: Recipe, steps: int) -> Recipe:
    """Return a recipe for GPUs with few steps on few frames; one for CPUs is short as it is."""
    if chosen.trials[0].device == "cpu":
        return chosen
    split = FEW.scenes[0][0]
    trials = tuple(
        replace(
            settings,
            data=replace(settings.data, train=(FEW.root,), val=FEW.root, train_split=split),
            train=replace(
                settings.train,
                steps=steps,
                warmup_steps=1,
                lr_scale=1e-3,  # fresh weights need not learn, and must not diverge
                checkpoint_every=steps,
                log_every=5,
            ),
            init_checkpoint="",
            conditions=("clean",),
        )
        for settings in chosen.trials
    )
    return replace(chosen, trials=trials, datasets=(FEW,))


def way(gpus: int) -> str:
    """Return the name of a way, which is that of its folder."""
    return f"gpus_{gpus}"


def sum_up(asked: argparse.Namespace, chosen: Recipe) -> dict[str, Any]:
    """Write down what both ways have so far, and return it."""
    rule = chosen.rule or DecisionRule()
    by_way = {
        gpus: ended_trials(asked.out / way(gpus), way(gpus), rule) for gpus in dict.fromkeys((asked.gpus, 1))
    }
    table = [line for lines in by_way.values() for line in lines]
    summary: dict[str, Any] = {way(gpus): about(lines) for gpus, lines in by_way.items()}
    many, one = (summary[way(gpus)].get("trials_per_hour") for gpus in (asked.gpus, 1))
    whole = all(len(lines) == gpus * asked.arms for gpus, lines in by_way.items())
    if many and one and whole:
        rows = {gpus: {line["trial"]: line["rows"] for line in lines} for gpus, lines in by_way.items()}
        summary["trials_have_as_many_rows_both_times"] = rows[1].items() <= rows[asked.gpus].items()
        summary["times_as_many_trials_per_hour"] = many / one
    asked.out.mkdir(parents=True, exist_ok=True)
    if table:
        with (asked.out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    write_json(asked.out / "summary.json", summary)
    return summary


def about(lines: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return trials an hour of one way, the GPUs that ran them, and how many rows a trial has."""
    return {
        **hourly(lines),
        "slots": sorted({line["slot"] for line in lines}),
        "rows": sorted({line["rows"] for line in lines}),
    }


if __name__ == "__main__":
    main()
