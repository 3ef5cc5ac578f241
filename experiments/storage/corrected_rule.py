"""A rule that was corrected after its study began: it judges the trials that have run, and this is noted.

Trials do not depend on the rule. So they stay, and the study keeps the digest with which it began.
"""

from dataclasses import replace
from pathlib import Path

from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.recipe import Recipe
from pipeline import json_files
from pipeline.json_files import JsonError
from pipeline.storage.files import atomic_write
from pipeline.storage.trial_status import read_status

STUDY = "study.json"
RULE_CHANGES = "rule_changes"
"""Key of ``study.json``: earlier rules, each with the trials and rows that there were at its end."""


def as_begun(study_folder: Path, recipe: Recipe) -> Recipe | None:
    """Return a recipe with the digest with which its study began, whatever its rule is now.

    Args:
        study_folder: of a study that has begun.
        recipe: the study, which may differ from the one in the folder in its rule.

    Returns:
        The recipe; None if the folder holds another study, or none.
    """
    try:
        found = json_files.read_json(study_folder / STUDY, dict)
        begun = DecisionRule.from_dict((found.get(RULE_CHANGES) or [found])[0]["rule"])
    except (
        FileNotFoundError,
        JsonError,
        AnalysisError,
        LookupError,
        TypeError,
    ):  # told by who reads the folder
        return None
    if recipe.rule is None or recipe.digest_under(begun) != found.get("digest"):
        return None
    return replace(recipe, begun_as=found["digest"])


def note_rule(study_folder: Path, rule: DecisionRule) -> None:
    """Write the rule of a study down, and beside it the one that it replaces."""
    path = study_folder / STUDY
    found, now = json_files.read_json(path, dict), rule.to_dict()
    if now != found["rule"]:
        change = {"rule": found["rule"], **_progress(study_folder)}
        changes = [*found.get(RULE_CHANGES, []), change]
        atomic_write(path, found | {"rule": now, RULE_CHANGES: changes}, fsync=True)


def _progress(study_folder: Path) -> dict[str, int]:
    """Return how many trials have ended, and how many rows all trials have."""
    rows = study_folder.glob("trials/*/rows.jsonl")
    return {
        "trials": sum(read_status(trial).state.has_ended for trial in study_folder.glob("trials/*")),
        "rows": sum(path.read_bytes().count(b"\n") for path in rows),
    }
