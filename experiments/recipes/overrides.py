"""A recipe with other settings: what ``--set``, ``--data``, ``--init`` and ``--gpus-per-trial`` change.

A key is that of a setting (``train.steps``), of the rule (``rule.confidence``), of early stopping
(``early_stopping.margin``; ``early_stopping=none`` stops no trial), of the recipe (``concurrent_trials``),
or of the config (``config.optim_wrapper.optimizer.lr``). All keys of a command are changed before
the recipe is checked.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.recipe import EarlyStoppingRule, Recipe, RecipeError
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
from pipeline.json_files import JsonError, check_fields
from pipeline.storage.paths import resolve_path

CONFIG, RULE, EARLY = "config.", "rule.", "early_stopping."
NO_EARLY = "early_stopping"
"""Key whose one value, ``none``, takes a recipe's early stopping away."""
OF_THE_DESIGN = frozenset({"study", "plan", "plan_mixture", "seed", "data", "train", "overrides"})
"""Fields of ``TrialSettings`` that are no keys: they differ by trial, or hold keys of their own."""
OF_THE_RECIPE = ("concurrent_trials", "confirmation_seeds", "underpowered")

SPLITS = {"v1.0-trainval": ("train", "val"), "v1.0-mini": ("mini_train", "mini_val")}
"""Version of nuScenes -> its splits to train on and to evaluate on."""


@dataclass(frozen=True)
class _RecipeFields:
    """The fields of a recipe that are keys, for the check of their types."""

    concurrent_trials: int | None = 1
    confirmation_seeds: tuple[int, ...] = ()
    underpowered: bool = False


OBJECTS = ("nuscenes_dbinfos_train.pkl", "database")
"""Names below a dataset's root under which CMT's tools, and `biaswise data objects`, keep cut-out objects."""


def known_keys() -> list[str]:
    """Return all keys, those of a config left out."""
    names = [(field.name, "") for field in fields(TrialSettings) if field.name not in OF_THE_DESIGN]
    names += [(field.name, "data.") for field in fields(DataSettings)]
    names += [(field.name, "train.") for field in fields(TrainSettings)]
    names += [(field.name, RULE) for field in fields(DecisionRule)]
    names += [(field.name, EARLY) for field in fields(EarlyStoppingRule)]
    return [f"{prefix}{name}" for name, prefix in names] + [NO_EARLY, *OF_THE_RECIPE]


def with_settings(recipe: Recipe, pairs: Sequence[tuple[str, Any]]) -> Recipe:
    """Return a recipe with other values.

    Args:
        recipe: the study.
        pairs: (key, plain value), in order; lists stand for tuples.

    Raises:
        RecipeError: a key is unknown, a value has another type, or the recipe contradicts itself now.
    """
    known = set(known_keys())
    for key, _ in pairs:
        if key not in known and not (key.startswith(CONFIG) and key != CONFIG):
            near = difflib.get_close_matches(key, known, 3) or sorted(known)
            raise RecipeError(
                f"--set {key}: a study has no such setting; did you mean {', '.join(near)}? A key of the "
                f"config begins with {CONFIG!r}; plans and seeds stand in the study file"
            )
    given: dict[str, dict[str, Any]] = {"": {}, RULE: {}, EARLY: {}, CONFIG: {}}
    for key, value in pairs:
        part = next((prefix for prefix in (RULE, EARLY, CONFIG) if key.startswith(prefix)), "")
        given[part][key.removeprefix(part)] = value
    own = {key: given[""].pop(key) for key in OF_THE_RECIPE if key in given[""]}
    if NO_EARLY in given[""]:
        recipe = _without_early_stopping(recipe, given[""].pop(NO_EARLY), given[EARLY])
    try:
        return replace(
            recipe,
            trials=tuple(_changed(settings, given[""], given[CONFIG]) for settings in recipe.trials),
            rule=_rule(recipe, given[RULE]),
            early_stopping=_early(recipe, given[EARLY]),
            overridden=(*recipe.overridden, *(word for pair in pairs for word in ("--set", _spelled(*pair)))),
            **_recipe_fields(recipe, own),
        )
    except JsonError as error:
        raise RecipeError(f"--set: {error}") from error


def _changed(settings: TrialSettings, given: dict[str, Any], config: dict[str, Any]) -> TrialSettings:
    if not given and not config:
        return settings
    plain = settings.to_dict()
    for key, value in given.items():
        group, dot, name = key.rpartition(".")
        place = plain[group] if dot else plain
        place[name] = _as(place[name], value)
    kept = [(key, text) for key, text in settings.overrides if key not in config]
    plain["overrides"] = [*kept, *((key, json.dumps(value)) for key, value in config.items())]
    return TrialSettings.from_dict(plain)


def _rule(recipe: Recipe, given: dict[str, Any]) -> DecisionRule | None:
    if not given:
        return recipe.rule
    if recipe.rule is None:
        raise RecipeError(f"--set rule.{next(iter(given))}: recipe {recipe.name} compares nothing")
    plain = recipe.rule.to_dict()
    return DecisionRule.from_dict(plain | {key: _as(plain[key], value) for key, value in given.items()})


def _early(recipe: Recipe, given: dict[str, Any]) -> EarlyStoppingRule | None:
    if not given:
        return recipe.early_stopping
    if recipe.early_stopping is None and "steps" not in given:
        raise RecipeError(f"--set early_stopping: recipe {recipe.name} stops no trial; set .steps, too")
    old = recipe.early_stopping or EarlyStoppingRule((1,))
    plain: dict[str, Any] = {"steps": list(old.steps), "margin": old.margin}
    plain |= {key: _as(plain[key], value) for key, value in given.items()}
    check_fields(EarlyStoppingRule, plain, "early_stopping")
    return EarlyStoppingRule(tuple(plain["steps"]), plain["margin"])


def _without_early_stopping(recipe: Recipe, value: Any, given: dict[str, Any]) -> Recipe:
    if value not in (None, "none"):
        raise RecipeError(
            f"--set early_stopping: it is {value!r}, expected none; its steps are set by "
            f"early_stopping.steps, its margin by early_stopping.margin"
        )
    if given:
        raise RecipeError(f"--set early_stopping=none: {EARLY}{next(iter(given))} is set, too; leave one out")
    return replace(recipe, early_stopping=None)


def _recipe_fields(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    plain = {key: _as(getattr(recipe, key), value) for key, value in given.items()}
    check_fields(_RecipeFields, plain, "recipe")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def _spelled(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _as(old: Any, value: Any) -> Any:
    """Return a single value as a list where a list stands."""
    return [value] if isinstance(old, list | tuple) and not isinstance(value, list | tuple) else value


def with_data(recipe: Recipe, place: str) -> Recipe:
    """Return a recipe that trains and evaluates on another dataset, whose version is found.

    Args:
        recipe: the study.
        place: root in nuScenes layout; or an info file (``.pkl``) of the training split, beside whose folder
            of tables it lies. A place that does not exist here (that of a cluster) keeps version and splits.

    Raises:
        pipeline.data.sample.DataError: it holds no tables.
    """
    root = str(Path(place).parent) if place.endswith(".pkl") else place
    pairs: list[tuple[str, Any]] = [("data.train", [place]), ("data.val", root)]
    here = resolve_path(root)
    if here.exists():
        from pipeline.data.formats.nuscenes_tables import find_version  # imports numpy

        version = find_version(here, prefer=recipe.trials[0].data.nuscenes_version)
        if version not in SPLITS:
            raise RecipeError(
                f"--data {place}: {version} has no boxes to train on; expected {' or '.join(SPLITS)}"
            )
        train, val = SPLITS[version]
        pairs += [("data.nuscenes_version", version), ("data.train_split", train), ("data.val_split", val)]
    changed = with_settings(recipe, [*pairs, *_object_database(recipe, root)])
    roots = {root for settings in changed.trials for root in (*settings.data.train, settings.data.val)}
    datasets = tuple(dataset for dataset in recipe.datasets if dataset.root in roots)
    return replace(changed, datasets=datasets, overridden=(*recipe.overridden, "--data", place))


def _object_database(recipe: Recipe, root: str) -> list[tuple[str, Any]]:
    """Return overrides that let GT sampling read the database of a dataset, where the config's is absent."""
    there = next((path for name in OBJECTS if resolve_path(path := f"{root}/{name}").exists()), None)
    if there is None:
        return []
    from pipeline.training.dataset import database_paths  # imports torch: seconds

    settings = recipe.trials[0]
    return [
        (f"{CONFIG}{key}", there if key.endswith("info_path") else root)
        for key, path in database_paths(settings.config, settings.overrides).items()
        if not resolve_path(path).exists()
    ]


def with_init(recipe: Recipe, checkpoints: Sequence[str]) -> Recipe:
    """Return a recipe whose trials start from another checkpoint, or those of each seed from one of its own.

    All arms of a seed start from the same, so seeds stay blocks. How gains differ between checkpoints is then
    part of how they differ between seeds. Two seeds of one checkpoint would hide it.

    Raises:
        RecipeError: there is neither one checkpoint nor one for each seed.
    """
    seeds = list(dict.fromkeys(settings.seed for settings in recipe.trials))
    if len(checkpoints) not in (1, len(seeds)):
        raise RecipeError(
            f"--init names {len(checkpoints)} checkpoints, and recipe {recipe.name} has {len(seeds)} "
            f"seeds; name one for all, or one for each seed"
        )
    own = dict(zip(seeds, cycle(checkpoints), strict=False))
    trials = tuple(replace(settings, init_checkpoint=own[settings.seed]) for settings in recipe.trials)
    words = [word for checkpoint in checkpoints for word in ("--init", checkpoint)]
    return replace(recipe, trials=trials, overridden=(*recipe.overridden, *words))
