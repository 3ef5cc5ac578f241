"""The recipes that ship with the project, by name."""

from collections.abc import Callable

from experiments.recipes.generated import pretrain_r50, pretrain_vov, r50_generated, vov_generated
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
    "pretrain_r50": pretrain_r50,
    "pretrain_vov": pretrain_vov,
    "r50_generated": r50_generated,
    "vov_generated": vov_generated,
}
"""Name -> the function that makes it."""


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        RecipeError: there is no such recipe.
    """
    if name not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
