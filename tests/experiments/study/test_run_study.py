"""One real study under Ray: a worker is killed and goes on, two workers train a cohort, a rerun skips."""

import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.recipes.mini import cross_plan, smoke
from experiments.storage.study_folder import StudyFolder
from experiments.study.preflight.checks import check_data, check_trials
from experiments.study.preflight.inputs import digest_inputs
from experiments.study.preflight.models import check_models
from experiments.study.tune_runner import ExecutionOptions, run_trials
from experiments.terminal import Terminal
from pipeline.config.settings import DataSettings, TrainSettings
from pipeline.metrics.rows import read_rows, select
from pipeline.runtime.event_log import starts_of
from pipeline.runtime.session import LocalSession
from pipeline.storage.checkpoint import newest_checkpoint
from pipeline.storage.paths import ROOT
from pipeline.training.trial import run_trial
from tests.machine import offspring
from tests.smallest import SMALLEST

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(seconds=60),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets through /proc"),
]

PATIENCE_S = 300
"""Wait for a checkpoint: the trial needs 20 s, on a machine that does much else 15 times that."""


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, ::ffff:127.0.0.1 in /proc/net/tcp*


def listening_addresses(family) -> list[str]:
    """Addresses, in hex, on which these processes accept TCP connections."""
    sockets = set()
    for pid in family:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
            except OSError:  # closed since
                continue
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # 0A is LISTEN
                found.append(fields[1].partition(":")[0])
    return found


class Killer(threading.Thread):
    """Kills the worker of a trial once it has a checkpoint, and notes where Ray listens."""

    def __init__(self, trial: Path, but: Set[int]) -> None:
        super().__init__(daemon=True)
        self.trial, self.but = trial, but
        self.checkpoint: Path | None = None
        self.inode = 0
        self.listening: list[str] = []

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.checkpoint is None and time.monotonic() < deadline:
            self.checkpoint = newest_checkpoint(self.trial / "checkpoints")
            time.sleep(0.02)
        assert self.checkpoint is not None
        self.inode = (self.checkpoint / "state.json").stat().st_ino
        family = offspring(but=self.but)
        self.listening = listening_addresses(family)
        (worker,) = [pid for pid, words in family.items() if words.startswith("ray::RayTrainWorker")]
        os.kill(worker, signal.SIGKILL)


@pytest.fixture(scope="module")
def recipe(smoke_world):
    base = replace(
        smoke().trials[0],
        data=DataSettings(train=(smoke_world.root,), val=smoke_world.root),
        overrides=SMALLEST,
        train=TrainSettings(steps=4, batch_size=1, warmup_steps=1, checkpoint_every=2, log_every=1),
    )
    window = cross_plan(("window", "none", "none"))
    on_two = replace(base, num_workers=2)
    trials = (base, replace(on_two, plan=window), on_two)
    return replace(smoke(), datasets=(smoke_world,), trials=trials, concurrent_trials=1)


def values(trial: Path) -> dict[tuple[str, str, str, int], float]:
    """Everything a trial measures that is no time."""
    rows = [
        row for row in read_rows(trial / "rows.jsonl") if row.unit in ("", "fraction", "logits", "1/logits")
    ]
    found = {(row.metric, row.site, row.condition, row.step): row.value for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_study_survives_a_kill_and_is_skipped_when_done(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 would let other tests beside this one starve it
    token_file = Path.home() / ".ray" / "auth_token"
    had_token = token_file.exists()
    folder = StudyFolder(tmp_path / "runs" / "smoke")
    folder.claim(recipe, digest_inputs(recipe))
    check_trials(recipe, folder)
    check_data(recipe)
    check_models(recipe, Terminal(quiet=True))
    killed, doubled, together = (folder.trial(name) for name in recipe.named_trials())
    earlier = offspring().keys()
    killer = Killer(killed, earlier)
    killer.start()
    console = Console(file=io.StringIO(), width=200)

    outcome = run_trials(recipe, folder, console, ExecutionOptions(tracking=False))

    killer.join()
    assert outcome.complete, outcome
    assert outcome.ran == 3
    # Ray listens on this machine alone, leaves no process, and no token in the home directory
    assert killer.listening
    assert set(killer.listening) <= LOOPBACK
    assert not [words for words in offspring(but=earlier).values() if "ray" in words.replace(str(ROOT), "")]
    assert token_file.exists() == had_token
    # the checkpoint that was there at the kill was gone on from, not written again
    assert killer.checkpoint is not None
    assert (killer.checkpoint / "state.json").stat().st_ino == killer.inode
    # killed and resumed under Ray equals unbroken in this process, bit for bit
    run_trial(recipe.trials[0], LocalSession(tmp_path / "unbroken"))
    assert values(killed) == values(tmp_path / "unbroken")
    # two workers: one set of rows, the plan of the settings, other data than one worker sees
    rows = read_rows(doubled / "rows.jsonl")
    assert {row.plan for row in rows} == {str(recipe.trials[1].plan.resolve(_sites(rows[0].plan)))}
    assert len(list(select(rows, metric="loss"))) == 4
    assert {row.recipe_digest for row in rows} == {recipe.digest}
    # ... and the other trial of two workers in the same processes, at the same time
    assert len(list(select(read_rows(together / "rows.jsonl"), metric="loss"))) == 4
    assert starts_of(together)[0].pid == starts_of(doubled)[0].pid

    again = run_trials(recipe, folder, console, ExecutionOptions(tracking=False))
    assert (again.ran, again.complete) == (0, True)
    assert all(folder.is_complete(name) for name in recipe.named_trials())


def _sites(plan: str) -> list[str]:
    return [part.partition("=")[0] for part in plan.split(";")]
