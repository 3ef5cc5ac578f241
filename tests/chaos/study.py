"""The study that the chaos tests break: four arms, two seeds, a real model as small as it goes.

All but a few of its trials are done when a run begins (copied from the unbroken study): so a run costs one to
four trials, has a verdict with degrees of freedom, and shows that what was done is left alone.
"""

import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Factor, full, plan_of
from experiments.recipes.mini import CROSS_SITES, IMPL, REST, smoke
from experiments.recipes.recipe import Recipe, SyntheticDataset, trials_of
from experiments.storage.study_folder import StudyFolder
from experiments.study.preflight.datasets import make_datasets
from experiments.study.preflight.inputs import digest_inputs
from pipeline.config.settings import DataSettings, TrainSettings
from pipeline.runtime.session import LocalSession
from pipeline.storage.trial_status import TrialState
from pipeline.training.trial import run_trial
from tests.chaos.cluster import ROOT
from tests.smallest import SMALLEST

NAME = "chaos"
STEPS = 12
"""Long enough for a moment drawn at random to lie in training as often as in what follows."""

POISON = 1e30
"""Factor on the moments of the optimiser of a trial that is to diverge: they ruin the weights in one step."""


def chaos_recipe(root: Path) -> Recipe:
    """The study over the data under ``root``."""
    world = SyntheticDataset(
        str(root), seed=3, frames_per_scene=2, scenes=(("mini_train", 2), ("mini_val", 1))
    )
    base = replace(
        smoke().trials[0],
        study=NAME,
        data=DataSettings(train=(world.root,), val=world.root),
        train=TrainSettings(steps=STEPS, batch_size=1, warmup_steps=1, checkpoint_every=2, log_every=1),
        overrides=SMALLEST,
    )
    design = full([Factor(site) for site in CROSS_SITES[:2]])
    rest = REST | {CROSS_SITES[2]: f"none/{IMPL}"}
    plans = {arm: plan_of(design, arm, rest, IMPL) for arm in design.arms}
    return Recipe(
        name=NAME,
        question="Does a study survive?",
        cost="eight trials of a few steps",
        trials=trials_of(design, base, (0, 1), plans),
        sites=design.sites,
        # NDS is above 0 even of a model that has learned nothing; without a price, times do not decide
        rule=DecisionRule(metric="NDS", sites=design.sites, price_points_per_percent=0.0),
        datasets=(world,),
        concurrent_trials=2,
    )


def make_world(root: Path) -> None:
    """Generate the data, once."""
    if not (root / "synth.json").exists():
        make_datasets(chaos_recipe(root).datasets, Console(file=io.StringIO()))


def make_unbroken(root: Path, runs: Path, python: str) -> StudyFolder:
    """Run the study without Ray, every trial alone, two at a time; what is done already stays.

    Args:
        root: of the data.
        runs: folder for the study.
        python: runs the trials.
    """
    recipe = chaos_recipe(root)
    folder = StudyFolder(runs / recipe.name)
    folder.claim(recipe, digest_inputs(recipe))
    todo = [name for name in recipe.named_trials() if folder.state(name) == TrialState.PENDING]
    words = [python, "-m", "tests.chaos.study", str(root), str(runs)]
    for at in range(0, len(todo), 2):
        made = [subprocess.Popen([*words, name], cwd=ROOT) for name in todo[at : at + 2]]
        assert [process.wait() for process in made] == [0] * len(made)
    return folder


def _run_alone(root: str, runs: str, name: str) -> None:
    """Run one trial in this process."""
    recipe = chaos_recipe(Path(root))
    folder = StudyFolder(Path(runs) / recipe.name)
    session = LocalSession(folder.trial(name))
    session.recipe = recipe.digest
    run_trial(recipe.named_trials()[name], session)
    folder.finish(name)


def poison(trial: Path, unbroken: Path) -> None:
    """Let a trial that has not begun go on from a checkpoint of its unbroken twin, after which it diverges.

    Args:
        trial: its folder.
        unbroken: that of its twin.
    """
    from safetensors.torch import load_file, save_file

    before_last = sorted(unbroken.glob("checkpoints/step_*"))[0]
    place = trial / "checkpoints" / before_last.name
    shutil.copytree(before_last, place)
    tensors = load_file(place / "tensors.safetensors")
    moments = {key: value * POISON for key, value in tensors.items() if key.endswith("/exp_avg")}
    save_file(tensors | moments, place / "tensors.safetensors")


def half_done(unbroken: StudyFolder, recipe: Recipe, runs: Path, under_way: Sequence[str]) -> StudyFolder:
    """Begin a study of which all trials but some are done."""
    folder = StudyFolder(runs / recipe.name)
    folder.claim(recipe, digest_inputs(recipe))
    for name in recipe.named_trials():
        if name not in under_way:
            shutil.rmtree(folder.trial(name))
            shutil.copytree(unbroken.trial(name), folder.trial(name))
    return folder


if __name__ == "__main__":
    _run_alone(*sys.argv[1:])
