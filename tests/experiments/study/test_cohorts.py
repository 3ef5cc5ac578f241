"""A cohort under Ray, killed as soon as one of its trials has ended: that one is done, the others go on."""

import io
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.recipes.mini import cross_plan, smoke
from experiments.storage.study_folder import StudyFolder
from experiments.study.preflight.inputs import digest_inputs
from experiments.study.tune_runner import ExecutionOptions, run_trials
from pipeline.config.settings import TrainSettings
from pipeline.metrics.rows import read_rows
from pipeline.runtime.event_log import starts_of
from pipeline.runtime.session import LocalSession
from pipeline.training.trial import run_trial
from tests.smallest import SMALLEST

pytestmark = [pytest.mark.cluster, pytest.mark.slow(seconds=50)]

PATIENCE_S = 300
PLANS = (("none", "none", "none"), ("window", "none", "none"), ("none", "window", "none"))


@pytest.fixture
def recipe(smoke_world):
    base = smoke().trials[0]
    base = replace(
        base,
        data=replace(base.data, train=(smoke_world.root,), val=smoke_world.root),
        overrides=SMALLEST,
        train=TrainSettings(steps=4, batch_size=1, warmup_steps=1, checkpoint_every=2, log_every=1),
    )
    trials = tuple(replace(base, plan=cross_plan(biases)) for biases in PLANS)
    return replace(smoke(), datasets=(smoke_world,), trials=trials)


class Killer(threading.Thread):
    """Kills the worker of a cohort once one of its trials has ended."""

    def __init__(self, folder, names):
        super().__init__(daemon=True)
        self.folder, self.names, self.ended = folder, names, []

    def run(self):
        deadline = time.monotonic() + PATIENCE_S
        while not self.ended and time.monotonic() < deadline:
            time.sleep(0.01)
            self.ended = [name for name in self.names if self.folder.is_complete(name)]
        os.kill(starts_of(self.folder.trial(self.ended[0]))[0].pid, signal.SIGKILL)


def numbers(trial):
    rows = [row for row in read_rows(trial / "rows.jsonl") if row.unit in ("", "fraction", "logits")]
    found = {(row.metric, row.site, row.condition, row.step): row.value for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.usefixtures("quick_ray")
def test_what_has_ended_is_not_run_again_and_the_others_go_on(recipe, tmp_path):
    folder = StudyFolder(tmp_path / "runs" / "smoke")
    folder.claim(recipe, digest_inputs(recipe))
    names = list(recipe.named_trials())
    killer = Killer(folder, names)
    killer.start()
    console = Console(file=io.StringIO(), width=200)
    running = ExecutionOptions(concurrent=1, arms_per_worker=3, tracking=False)

    outcome = run_trials(recipe, folder, console, running)

    killer.join()
    assert outcome.complete, outcome
    starts = {name: starts_of(folder.trial(name)) for name in names}
    assert len({begun[0].pid for begun in starts.values()}) == 1, "one worker had all of them"
    for name, begun in starts.items():
        assert [event.step for event in begun] == ([0] if name in killer.ended else [0, 4])
    text = console.file.getvalue()
    assert "a cohort of 3 (" in text
    assert text.count(" done in ") == 3
    for name, settings in recipe.named_trials().items():
        run_trial(settings, LocalSession(tmp_path / "alone" / name))
        assert numbers(folder.trial(name)) == numbers(tmp_path / "alone" / name)
