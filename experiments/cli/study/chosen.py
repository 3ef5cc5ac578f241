"""Which study a command line means: the name of a recipe or a study file, and what it overrides."""

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import OptionError, read_assignments
from pipeline.storage.paths import HOME, JOB_HOME

if TYPE_CHECKING:
    from experiments.recipes.recipe import Recipe


def add_study(parser: ArgumentParser) -> None:
    """Add a study: the name of a recipe, or a study file."""
    text = "a name that `biaswise study list` shows, or your study file (my_study.py)"
    code = "a study file, and a config, is run as code: use none that you do not trust"
    parser.add_argument("study", help=f"{text}; {code}")


def add_overrides(parser: ArgumentParser) -> None:
    """Add the options that change a study."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other settings of all trials, or of the rule, such as train.steps=500 rule.confidence=0.9 "
        "config.optim_wrapper.optimizer.lr=1e-4; they are part of the study's digest and of its report",
    )
    parser.add_argument(
        "--data",
        metavar="PLACE",
        help="nuScenes (the folder that holds v1.0-trainval), or an info file (.pkl) in it",
    )
    parser.add_argument(
        "--init",
        action="append",
        metavar="CHECKPOINT",
        help="weights from which all trials start; given once for each seed: each seed has its own",
    )
    parser.add_argument(
        "--gpus-per-trial", type=int, metavar="N", help="workers of each trial; their gradients are averaged"
    )


def chosen_study(arguments: Namespace) -> "Recipe":
    """Return the study that ``add_study`` and ``add_overrides`` mean.

    Raises:
        RecipeError: there is no such study, or it does not take what is overridden.
        StudyError: ``study run`` would refuse its settings or its rule.
        OptionError: a word of ``--set`` is no ``KEY=VALUE``.
    """
    from experiments.study.preflight.values import check_values

    chosen = unchecked_study(arguments)
    if "set" in arguments:
        check_values(chosen)
    return chosen


def unchecked_study(arguments: Namespace) -> "Recipe":
    """Return the study of ``chosen_study``, for a command whose other options change its settings."""
    from experiments.recipes.overrides import with_data, with_init, with_settings
    from experiments.recipes.registry import recipe

    chosen = recipe(arguments.study)
    if "set" not in arguments:
        return chosen
    if arguments.data is not None:
        chosen = with_data(chosen, _given("--data", arguments.data))
    if arguments.init is not None:
        chosen = with_init(chosen, [_given("--init", checkpoint) for checkpoint in arguments.init])
    if pairs := read_assignments("--set", arguments.set, "train.steps=500"):
        chosen = with_settings(chosen, pairs)
    if arguments.gpus_per_trial is not None:
        words = ("--gpus-per-trial", str(arguments.gpus_per_trial))
        spread = chosen.with_workers(arguments.gpus_per_trial)
        chosen = replace(spread, overridden=(*chosen.overridden, *words))
    return chosen


def name_of(study: str) -> str:
    """Return the name of a study that is named by its study file; any other word as it is."""
    from experiments.recipes.registry import recipe
    from experiments.recipes.study_file import SUFFIX

    return recipe(study).name if study.endswith(SUFFIX) else study


def kept_by_jobs(command: str, study: str, folder: Path) -> str:
    """Return that a study which is not in its folder is where Ray jobs keep theirs; empty if it is not.

    Args:
        command: the command of ``biaswise study`` that looks for it.
        study: as it was typed.
        folder: where it was looked for.
    """
    if not (Path(JOB_HOME).expanduser() / "runs" / folder.name / "study.json").exists():
        return ""
    words = shlex.join(["biaswise", "study", command, study])
    return f"Ray jobs keep theirs in {JOB_HOME}, and it is there: `{HOME}={JOB_HOME} {words}`"


def overridden_study(study: str, words: Sequence[str]) -> "Recipe":
    """Return a study as other words of a command line had changed it.

    Args:
        study: its name or its file.
        words: as ``Recipe.overridden`` has them.
    """
    parser = ArgumentParser()
    add_study(parser)
    add_overrides(parser)
    return chosen_study(parser.parse_args([study, *words]))


def _given(option: str, value: str) -> str:
    if not value:
        raise OptionError(f"{option}: expected a path, got nothing")
    return value
