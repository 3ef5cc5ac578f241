"""Which settings differ between the trials of a study's folder and those of a recipe."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.config.settings import TrialSettings


def changed_keys(found: Iterable[Mapping[str, Any]], wanted: Iterable[TrialSettings]) -> list[str]:
    """Return what differs, spelled as ``--set`` spells it; ``plan`` and ``seed`` if there are others.

    Args:
        found: the ``settings.json`` of the folder's trials.
        wanted: the recipe's trials.
    """
    old = {_of_the_design(plain): plain for plain in found}
    new = {_of_the_design(plain): plain for plain in json.loads(json.dumps([s.to_dict() for s in wanted]))}
    keys = {key for arm in old.keys() & new.keys() for key in differences(old[arm], new[arm], dot=".")}
    for place, name in enumerate(("plan", "seed")):
        if {arm[place] for arm in old} != {arm[place] for arm in new}:
            keys.add(name)
    return sorted(keys)


def differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "", dot: str = ": "
) -> Iterator[str]:
    """Yield the keys whose values differ, with those of the objects that they are in."""
    for key in found.keys() | wanted.keys():
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{at}{key}{dot}", dot)
        elif old != new:
            yield f"{at}{key}"


def _of_the_design(plain: Mapping[str, Any]) -> tuple[str, str]:
    """Return plan and seed of settings, by which two trials are compared."""
    return str(plain.get("plan")), str(plain.get("seed"))
