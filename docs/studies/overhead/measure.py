"""What Ray, Tune and MLflow add to a trial: the same trial of the mini in plain Python and in a study.

Each way runs in a process of its own, in turn, several times. A study of three trials less a study of one is
two trials: what a further trial costs.
Last, the memory of a Ray that waits for trials. Example:

    python docs/studies/overhead/measure.py --out runs/overhead

The numbers in README.md were made at the commit that it names. The script runs on today's code.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from many import looked_at
from rich.console import Console

from experiments.recipes.mini import smoke
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import write_json
from experiments.study.preflight.datasets import make_datasets
from pipeline.ray_train.local_cluster import prepare_ray, ray_session

TEN_MINUTES_S = 600


def main() -> None:
    """Measure all ways, or (called by itself) go one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/overhead"))
    parser.add_argument("--way", choices=["plain", "one", "three", "idle"])
    asked = parser.parse_args()
    if asked.way:
        go(asked.way, asked.out)
        return
    make_datasets(smoke().datasets, Console())
    found: dict[str, list[float]] = {"plain": [], "one": [], "three": []}
    for turn in range(asked.repeat):
        for way in found:
            found[way].append(timed(way, asked.out / f"{way}{turn}"))
            print(way, found[way][-1], flush=True)
    idle = subprocess.run([*words("idle", asked.out)], check=True, capture_output=True, text=True).stdout
    summary = {"runs": found, **compared(found), "idle": json.loads(idle.splitlines()[-1])}
    write_json(asked.out / "summary.json", summary)
    print(json.dumps({key: value for key, value in summary.items() if key != "runs"}, indent=1))


def words(way: str, out: Path) -> list[str]:
    """Return the command that goes one way."""
    return [sys.executable, __file__, "--way", way, "--out", str(out)]


def timed(way: str, out: Path) -> float:
    """Go one way in a process of its own; return its seconds."""
    begun = time.monotonic()
    given = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{out.resolve()}/mlflow.db"}
    subprocess.run(words(way, out), check=True, stdout=subprocess.DEVNULL, env=given)
    return round(time.monotonic() - begun, 1)


def go(way: str, out: Path) -> None:
    """Run the trial in this process, one or three of them in a study, or a Ray that waits."""
    prepare_ray()
    if way == "plain":
        from pipeline.runtime.session import LocalSession
        from pipeline.training.trial import run_trial

        (settings,) = mini(1).trials
        run_trial(settings, LocalSession(out / "trials" / "plain"))
    elif way == "idle":
        with ray_session(cpus=2, drivers=2):
            time.sleep(30)  # until its first workers have started and wait
            seen = [(one.role, round(one.pss_mib, 1)) for one in looked_at(os.getpid())]
            before = {one.pid: one.cpu_s for one in looked_at(os.getpid())}
            time.sleep(30)
            used = sum(one.cpu_s - before.get(one.pid, 0.0) for one in looked_at(os.getpid()))
        total = round(sum(size for _, size in seen), 1)
        content = {"pss_mib": total, "processes": sorted(seen), "cores_used_while_idle": round(used / 30, 3)}
        print(json.dumps(content))
    else:
        from experiments.study.run_study import RunOptions, run_study

        run_study(
            mini(3 if way == "three" else 1), RunOptions(out, concurrent=1, arms_per_worker=1), Console()
        )


def mini(trials: int) -> Recipe:
    """Return a study of the mini as it is shipped, ten steps a trial."""
    base = replace(smoke().trials[1], study="overhead")
    base = replace(base, train=replace(base.train, steps=10, checkpoint_every=10))
    seeds = tuple(replace(base, seed=seed) for seed in range(trials))
    return replace(smoke(), name="overhead", trials=seeds, rule=None, sites=())


def compared(found: dict[str, list[float]]) -> dict[str, float]:
    """Return the fixed costs in seconds, of a further trial and of a study, from the quickest runs."""
    plain, one, three = (min(found[way]) for way in ("plain", "one", "three"))
    further = (three - one) / 2
    return {
        "plain trial": plain,
        "further trial of a study": round(further, 1),
        "added to each trial": round(further - plain, 1),
        "added to each trial, % of ten minutes": round((further - plain) / TEN_MINUTES_S * 100, 2),
        "once per study (checks, Ray, report, MLflow)": round(one - further, 1),
    }


if __name__ == "__main__":
    main()
