"""The recipes that ship with the project, by name; and a user's own, by the name of its file."""

from collections.abc import Callable
from pathlib import Path

from experiments.recipes.generated.pretraining import (
    branches_r50,
    branches_vov,
    pretrain_r50,
    pretrain_vov,
)
from experiments.recipes.generated.study import r50_generated, vov_generated
from experiments.recipes.mini import (
    demo,
    demo_gpu,
    demo_waves,
    pretrain,
    pretrain_cameras,
    smoke,
    smoke_waves,
)
from experiments.recipes.nuscenes import r50, r50_screened, r50_waves, vov_waves
from experiments.recipes.recipe import Recipe, RecipeError
from experiments.recipes.study_file import SUFFIX, load_study_file

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "demo_gpu": demo_gpu,
    "demo_waves": demo_waves,
    "pretrain": pretrain,
    "pretrain_cameras": pretrain_cameras,
    "smoke": smoke,
    "smoke_waves": smoke_waves,
    "r50": r50,
    "r50_waves": r50_waves,
    "r50_screened": r50_screened,
    "vov_waves": vov_waves,
    "branches_r50": branches_r50,
    "pretrain_r50": pretrain_r50,
    "branches_vov": branches_vov,
    "pretrain_vov": pretrain_vov,
    "r50_generated": r50_generated,
    "vov_generated": vov_generated,
}
"""Name -> the function that makes it."""


def is_study_file(study: str) -> bool:
    """Return whether a study is named by a file, and not by the name of a recipe."""
    return study not in RECIPES and (study.endswith(SUFFIX) or Path(study).name != study)


def recipe(study: str) -> Recipe:
    """Return a recipe by its name, or the one in which a study file ends. The file is run as code.

    Args:
        study: a name of ``RECIPES``, or the path of a study file (``my_study.py``).

    Raises:
        RecipeError: there is no such recipe, or the file does not end in one.
    """
    if study in RECIPES:
        return RECIPES[study]()
    if is_study_file(study):
        return load_study_file(Path(study), RECIPES)
    there = Path(study + SUFFIX).exists()
    hint = f"; did you mean {study}{SUFFIX}?" if there else f"; a study file ends in {SUFFIX}"
    raise RecipeError(f"no recipe {study!r}; there are {', '.join(RECIPES)}{hint}")
