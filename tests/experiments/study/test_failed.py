"""A study of which trials diverge: told by name, the rest done and reported, and no traceback."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.recipes.mini import smoke
from experiments.storage.study_folder import StudyFolder
from experiments.study.run_study import RunOptions, run_study
from pipeline.metrics.rows import read_rows
from pipeline.storage.trial_status import TrialState
from tests.smallest import SMALLEST

pytestmark = [pytest.mark.cluster, pytest.mark.slow(seconds=25)]


@pytest.mark.usefixtures("quick_ray")
def test_one_trial_diverges_and_then_all_do(smoke_world, tmp_path):
    data = replace(smoke().trials[0].data, train=(smoke_world.root,), val=smoke_world.root)
    healthy, other = (replace(s, data=data, overrides=SMALLEST) for s in smoke().trials)
    mad = replace(other, train=replace(other.train, lr_scale=1e20, warmup_steps=0))
    console = Console(file=io.StringIO(), width=300)
    options = RunOptions(tmp_path / "runs", tracking=False)

    recipe = replace(smoke(), trials=(healthy, mad), datasets=(smoke_world,))
    outcome = run_study(recipe, options, console)
    folder = StudyFolder(tmp_path / "runs" / "smoke")
    well, ill = recipe.named_trials()
    assert (outcome.done, tuple(outcome.failed)) == ((well,), (ill,))
    assert (folder.state(well), folder.state(ill)) == (TrialState.COMPLETE, TrialState.FAILED)
    text = console.file.getvalue()
    assert f"failed: {ill}: training stopped at step" in text
    assert "Traceback" not in text
    assert (folder.path / "report.html").exists()

    # all trials of a cohort fail: no report to make, and a sentence each
    again = Console(file=io.StringIO(), width=300)
    cohort = replace(recipe, trials=(replace(mad, plan=healthy.plan), mad)).renamed("ill")
    outcome = run_study(cohort, replace(options, arms_per_worker=2), again)
    assert not outcome.done
    assert "a cohort of 2 (" in again.file.getvalue()
    assert "Traceback" not in again.file.getvalue()
    for ill in cohort.named_trials():
        assert f"failed: {ill}: training stopped at step" in again.file.getvalue()
        place = StudyFolder(tmp_path / "runs" / "ill").trial(ill)
        assert read_rows(place / "rows.jsonl")[-1].metric == "loss"
