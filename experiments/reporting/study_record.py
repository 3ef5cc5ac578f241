"""The record of a study as its report reads it: ``study.json``, and what is to be said about it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from pipeline.json_files import JsonError, check_fields, read_json


class ReportError(ValueError):
    """A study folder of which no report can be made; the message is one sentence."""


@dataclass(frozen=True)
class RuleChange:
    """A change of a study's rule.

    Attributes:
        rule: what it was before.
        trials: trials that had ended by then.
        rows: rows that there were.
    """

    rule: dict[str, object]
    trials: int
    rows: int


@dataclass(frozen=True)
class StudyRecord:
    """The content of ``study.json``.

    Attributes:
        name: name of the study; may be empty.
        question: the question it answers, in a sentence; may be empty.
        rule: how it is answered; None if the study compares nothing.
        digest: digest of recipe and rule, which every row carries.
        file: the study file that it comes from; empty if the recipe ships with the project.
        overridden: words of the command line that changed the recipe.
        rule_changes: earlier rules.
        weights: what its trials start from.
    """

    name: str
    question: str
    rule: DecisionRule | None
    digest: str
    file: str = ""
    overridden: tuple[str, ...] = ()
    rule_changes: tuple[RuleChange, ...] = ()
    weights: tuple[str, ...] = ()


def read_record(study_folder: Path) -> StudyRecord:
    """Read ``study.json``: ``name``, ``question``, ``rule`` (``DecisionRule.to_dict``) and ``digest``."""
    path = study_folder / "study.json"
    try:
        plain = read_json(path, dict)
        texts = {name: plain.get(name, "") for name in ("name", "question", "digest", "file")}
        lists = {name: plain.get(name, []) for name in ("overridden", "rule_changes")}
        check_fields(StudyRecord, texts | lists | {"rule": None}, "study")
    except FileNotFoundError:
        raise ReportError(f"{study_folder} is not a study: it has no study.json") from None
    except JsonError as error:
        raise ReportError(
            f"{path} is not JSON of a study ({error.reason}); restore it, or delete it: `biaswise study run` "
            f"writes it anew, and trials of the same recipe stay"
        ) from error
    inputs = plain.get("inputs", {})
    if not isinstance(inputs, dict):
        raise ReportError(f"{path} has inputs that cannot be read (they are no object)")
    if "rule" not in plain:
        raise ReportError(f"{path} has no rule, so nothing says what its verdicts would mean")
    if plain["rule"] is not None and not isinstance(plain["rule"], dict):
        raise ReportError(f"{path} has a rule that cannot be read (it is no object)")
    try:
        rule = None if plain["rule"] is None else DecisionRule.from_dict(plain["rule"])
    except (AnalysisError, TypeError) as error:
        raise ReportError(f"{path} has a rule that cannot be read ({error})") from error
    changes = tuple(RuleChange(**change) for change in lists["rule_changes"])
    weights = tuple(name for name in inputs if not name.endswith(".py"))  # the others are configs
    overridden = tuple(lists["overridden"])
    return StudyRecord(rule=rule, overridden=overridden, rule_changes=changes, weights=weights, **texts)


def about_record(record: StudyRecord) -> tuple[str, ...]:
    """Return notes about what the command line overrode, and about each change of the rule."""
    words = shlex.join(record.overridden)
    notes = (
        [f"Overridden on the command line: {words} (every command of this study takes it)."] if words else []
    )
    latest = record.rule.to_dict() if record.rule else {}
    rules = [*(change.rule for change in record.rule_changes[1:]), latest]
    for change, now in zip(record.rule_changes, rules, strict=False):
        fields = [f"{k}: {change.rule.get(k)} -> {now[k]}" for k in now if now[k] != change.rule.get(k)]
        notes.append(
            f"The rule was changed after {change.rows} rows of {change.trials} trials ({'; '.join(fields)}); "
            f"the confidence is that of a rule that is fixed before the first row."
        )
    return (*notes, *_about_weights(record))


def _about_weights(record: StudyRecord) -> list[str]:
    """Return a note on the weights for which the verdicts hold.

    The studies of two trainings of one recipe have answered differently (docs/studies/generated).
    """
    if record.rule is None or not record.weights:
        return []
    if len(record.weights) == 1:
        return [
            f"The verdicts hold for trainings that start from {record.weights[0]}; from other weights they "
            f"may differ. --init, given once for each seed, gives each its own."
        ]
    return [
        f"Each seed starts from weights of its own, {len(record.weights)} in all; how gains differ between "
        f"these is in the intervals."
    ]
