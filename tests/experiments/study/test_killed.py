"""A sequential study under Ray, killed twice at random moments, gives the rows of an unbroken one."""

import os
import pickle
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Factor, full, plan_of
from experiments.recipes.mini import CROSS_SITES, IMPL, REST, smoke_waves
from experiments.recipes.recipe import EarlyStoppingRule, trials_of
from experiments.storage.study_folder import StudyFolder
from experiments.study.next_wave import Budget, next_wave
from experiments.study.waves import early_stopping_of, ended_rows
from pipeline.metrics.rows import read_rows
from pipeline.runtime.session import LocalSession
from pipeline.training.trial import run_trial
from tests.smallest import SMALLEST

pytestmark = [pytest.mark.cluster, pytest.mark.slow(seconds=110)]

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, pickle, sys
from pathlib import Path
from rich.console import Console
from experiments.storage.study_folder import StudyFolder
from experiments.study.next_wave import Budget
from experiments.study.tune_runner import ExecutionOptions
from experiments.study.waves import run_waves

if __name__ == "__main__":
    sys.executable = os.environ["QUICK_PYTHON"]  # of Ray's processes
    Path(sys.argv[3]).write_text(str(os.getpid()))
    recipe = pickle.loads(Path(sys.argv[1]).read_bytes())
    folder = StudyFolder(Path(sys.argv[2]))
    folder.claim(recipe, {})
    print(run_waves(recipe, folder, Console(), ExecutionOptions(2, tracking=False), Budget(100)))
"""
PATIENCE_S = 600
"""The whole needs a minute, on a machine that does much else ten times that."""


@pytest.fixture
def recipe(smoke_world):
    """One layer, three seeds judged at two looks, and early stopping."""
    base = smoke_waves().trials[0]
    base = replace(
        base,
        data=replace(base.data, train=(smoke_world.root,), val=smoke_world.root),
        train=replace(base.train, steps=4, lr_scale=2.0),
        overrides=SMALLEST,
    )
    design = full([Factor(CROSS_SITES[0])])
    rest = REST | dict.fromkeys(CROSS_SITES[1:], f"none/{IMPL}")
    plans = {arm: plan_of(design, arm, rest, IMPL) for arm in design.arms}
    return replace(
        smoke_waves(),
        trials=trials_of(design, base, (0, 1, 2), plans),
        sites=design.sites,
        rule=DecisionRule(
            metric="mAP", sites=design.sites, seeds=(0, 1, 2), arms=design.arms, interim_analyses=(2, 3)
        ),
        datasets=(smoke_world,),
        design=design,
        early_stopping=EarlyStoppingRule(steps=(2,)),
        confirmation_seeds=(),
    )


def run_unbroken(recipe, folder):
    """The same waves in this process, one trial after another, without Ray."""
    folder.claim(recipe, {})
    while asked := next_wave(
        rows := ended_rows(recipe, folder), recipe.rule, recipe.design, Budget(100)
    ).arms_by_seed:
        wave = next_wave(rows, recipe.rule, recipe.design, Budget(100))
        early_stopping = early_stopping_of(recipe, rows, wave)
        for seed, arms in asked:
            for arm in arms:
                name = recipe.by_arm()[arm, seed]
                run_trial(recipe.named_trials()[name], LocalSession(folder.trial(name)), early_stopping)
                folder.finish(name)


def numbers(folder):
    """Everything that is measured and is no time."""
    found = {}
    for path in folder.path.glob("trials/*/rows.jsonl"):
        for row in read_rows(path):
            if row.unit not in ("ms", "samples/s", "GiB", "s", "label"):
                key = (row.trial, row.metric, row.site, row.condition, row.scene, row.draw, row.step)
                assert key not in found, key
                found[key] = (row.value, row.n, row.seed, row.plan)
    return found


def num_rows(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.path.glob("trials/*/rows.jsonl"))


def begin(tmp_path, folder, quick_python):
    """Start the study; the process that is to be killed leaves its number in ``pid``."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = [quick_python["QUICK_PYTHON"], str(program)]
    words += [str(tmp_path / "recipe"), str(folder.path), str(tmp_path / "pid")]
    with (tmp_path / "log").open("a") as log:
        return subprocess.Popen(words, env=os.environ | quick_python, stdout=log, stderr=log, cwd=ROOT)


def test_killed_twice_and_resumed_equals_unbroken(recipe, tmp_path, quick_python):
    unbroken, killed = StudyFolder(tmp_path / "unbroken"), StudyFolder(tmp_path / "killed")
    run_unbroken(recipe, unbroken)
    total = num_rows(unbroken)
    (tmp_path / "recipe").write_bytes(pickle.dumps(recipe))
    rng = random.Random(20261123)
    for cut in sorted(rng.sample(range(total // 20, total), 2)):
        process = begin(tmp_path, killed, quick_python)
        deadline = time.monotonic() + PATIENCE_S
        while num_rows(killed) < cut and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, (tmp_path / "log").read_text()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        process.wait()
        assert cut <= num_rows(killed)
    process = begin(tmp_path, killed, quick_python)
    assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()

    assert numbers(killed) == numbers(unbroken)
    assert {row.trial for row in ended_rows(recipe, killed)} == set(recipe.named_trials())
