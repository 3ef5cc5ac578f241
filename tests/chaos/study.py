"""The study that the chaos tests break: two arms, two seeds, a real model as small as it goes.

Two or three of its trials are done when a run begins (copied from the unbroken study): so a run costs one or
two trials, has a verdict with a degree of freedom, and shows that what was done is left alone.
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
from experiments.study.preflight import digest_inputs, make_datasets
from pipeline.config.settings import DataSettings, TrainSettings
from pipeline.runtime.session import LocalSession
from pipeline.storage.trial_status import TrialState
from pipeline.training.trial import run_trial
from tests.chaos.cluster import ROOT
from tests.smallest import SMALLEST

NAME = "chaos"
STEPS = 12
"""Long enough for a moment drawn at random to lie in training as often as in what follows."""

MAD = 1e20
"""Factor on the learning rate of the trial that is to diverge."""


def chaos_recipe(root: Path, mad: int | None = None) -> Recipe:
    """The study over the data under ``root``; the trial ``mad`` of seed 1 (0 or 1), if any, diverges."""
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
    design = full([Factor(CROSS_SITES[0])])
    rest = REST | dict.fromkeys(CROSS_SITES[1:], f"none/{IMPL}")
    plans = {arm: plan_of(design, arm, rest, IMPL) for arm in design.arms}
    trials = list(trials_of(design, base, (0, 1), plans))
    if mad is not None:
        place = len(design.arms) + mad
        trials[place] = replace(
            trials[place], train=replace(trials[place].train, lr_scale=MAD, warmup_steps=0)
        )
    return Recipe(
        name=NAME,
        question="Does a study survive?",
        cost="four trials of a few steps",
        trials=tuple(trials),
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


def make_unbroken(root: Path, mad: int | None, runs: Path, python: str) -> StudyFolder:
    """Run the study without Ray, two trials at a time; what is done already stays.

    Args:
        root: of the data.
        mad: the trial that is to diverge, if any; it is left out.
        runs: folder for the study.
        python: runs the trials.
    """
    recipe = chaos_recipe(root, mad)
    folder = StudyFolder(runs / recipe.name)
    folder.claim(recipe, digest_inputs(recipe))
    sane = [name for name, settings in recipe.named_trials().items() if settings.train.lr_scale < MAD]
    todo = [name for name in sane if folder.state(name) == TrialState.PENDING]
    words = [python, "-m", "tests.chaos.study", str(root), "" if mad is None else str(mad), str(runs)]
    for at in range(0, len(todo), 2):
        made = [subprocess.Popen([*words, name], cwd=ROOT) for name in todo[at : at + 2]]
        assert [process.wait() for process in made] == [0] * len(made)
    return folder


def _run_alone(root: str, mad: str, runs: str, name: str) -> None:
    """Run one trial in this process."""
    recipe = chaos_recipe(Path(root), int(mad) if mad else None)
    folder = StudyFolder(Path(runs) / recipe.name)
    session = LocalSession(folder.trial(name))
    session.recipe = recipe.digest
    run_trial(recipe.named_trials()[name], session)
    folder.finish(name)


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
