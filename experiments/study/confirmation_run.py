"""The confirmation of a study: no bias and two plans, with fresh seeds.

The study's own trials chose the plans, so the gains that they measure are biased upwards. A gain on fresh
seeds is not. The plans are the best guess and the settled one. If that is none or the same, the second best
runs: the first may have been put first by chance. The confirmation is a study of its own in the folder
``confirmation``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from statistics import mean

from rich.table import Table

from experiments.analysis.confirmation import FOLDER
from experiments.analysis.decide import weigh
from experiments.analysis.price import read_stopwatch
from experiments.analysis.recommend import Recommendation, recommend
from experiments.analysis.row_checks import final_values
from experiments.analysis.screening import rule_in_force
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder, read_json, write_json
from experiments.study.tune_runner import ExecutionOptions, Outcome, run_trials
from experiments.study.waves import ended_rows
from experiments.terminal import Terminal
from pipeline.metrics.rows import Row

NONE, RECOMMENDED, SETTLED_PLAN, NEXT = "none", "recommended", "settled", "next best"
BIASED_PLANS = 2
"""Plans with a bias that are trained."""
MOST_ARMS = 1 + BIASED_PLANS
"""Arms of a confirmation: these, and no bias."""


@dataclass(frozen=True)
class Confirmed:
    """What one arm measured with fresh seeds.

    Attributes:
        arm: ``none``, ``recommended``, ``settled`` or ``next best`` (of several: ``next best 2``).
        levels: of the factors.
        value: mean of the rule's metric, points.
        gains: over no bias with the same seed, points; one per seed that has both.
    """

    arm: str
    levels: Arm
    value: float
    gains: tuple[float, ...]


def run_confirmation(
    recipe: Recipe, folder: StudyFolder, console: Terminal, running: ExecutionOptions
) -> Outcome | None:
    """Run the confirmation of a study, or go on with it, and print what it measured.

    Args:
        recipe: with fresh seeds and a rule.
        folder: of the study, whose trials have ended.
        console: where progress and result are shown.
        running: how trials run.

    Returns:
        How its trials ended; None if the rows support no recommendation.
    """
    rule, rows = _rule(recipe), ended_rows(recipe, folder)
    try:
        judged_by = rule_in_force(rule, folder.path, recipe.digest)
        evidence = weigh(rows, judged_by, read_stopwatch(folder.path))
    except AnalysisError:  # the report shows it
        return None
    if evidence.price is None:
        return None
    advice = recommend(rows, evidence)
    arms = arms_of(recipe, advice)
    made, place = confirmation(recipe, arms), StudyFolder(folder.path / FOLDER)
    place.claim(made, read_json(folder.path / "study.json")["inputs"])
    console.print(f"confirmation: {len(made.trials)} trials with fresh seeds")
    outcome = run_trials(made, place, console, running)
    measured = confirmed(ended_rows(made, place), made, arms, rule)
    predicted = advice.best.gain
    content = {"metric": rule.metric, "condition": rule.condition, "predicted_gain": predicted}
    write_json(place.path / "confirmation.json", content | {"arms": [asdict(one) for one in measured]})
    _print_arms(measured, rule, predicted, console)
    return outcome


def _print_arms(
    measured: Sequence[Confirmed], rule: DecisionRule, predicted: float, console: Terminal
) -> None:
    """Print the arms; a gain is the mean over the fresh seeds of the difference to no bias."""
    title = f"Fresh seeds, points of {rule.metric} ({rule.condition}); predicted gain {predicted:+.2f}"
    table = Table("arm", "value", "gain", "per seed", box=None, title=title)
    for one in measured:
        gain = f"{mean(one.gains):+.2f}" if one.gains else ""
        table.add_row(one.arm, f"{one.value:.2f}", gain, ", ".join(f"{g:+.2f}" for g in one.gains))
    console.print(table)


def arms_of(recipe: Recipe, advice: Recommendation) -> dict[str, Arm]:
    """Return name -> levels of the arms that are trained: none, and the plans with a bias.

    If no bias is recommended, it is listed under both names.
    """
    none, best = (_rule(recipe).baseline,) * len(recipe.sites), advice.best.levels
    settled = None if advice.settled is None else advice.settled.levels
    ranked = [best, *([settled] if settled else []), *(one.levels for one in advice.candidates)]
    biased = [levels for levels in dict.fromkeys(ranked) if levels != none][:BIASED_PLANS]
    arms = {NONE: none, RECOMMENDED: best}
    if settled in biased and settled != best:
        arms[SETTLED_PLAN] = settled
    others = [levels for levels in biased if levels not in arms.values()]
    names = [NEXT if place == 1 else f"{NEXT} {place}" for place in range(1, len(others) + 1)]
    return arms | dict(zip(names, others, strict=True))


def confirmation(recipe: Recipe, arms: dict[str, Arm]) -> Recipe:
    """Return the study that confirms: each arm with each fresh seed."""
    plans = [recipe.plan(levels) for levels in dict.fromkeys(arms.values())]
    return replace(
        recipe,
        question=f"Does the recommendation of {recipe.name} hold with fresh seeds?",
        trials=tuple(
            replace(recipe.trials[0], plan=plan, seed=seed, init_checkpoint=checkpoint)
            for seed, checkpoint in zip(recipe.confirmation_seeds, cycle(recipe.checkpoints), strict=False)
            for plan in plans
        ),
        rule=None,
        begun_as="",
        design=None,
        early_stopping=None,
        confirmation_seeds=(),
    )


def confirmed(rows: Sequence[Row], made: Recipe, arms: dict[str, Arm], rule: DecisionRule) -> list[Confirmed]:
    """Compute what each arm measured from the rows; an arm that lacks a trial has fewer gains."""
    values = {t: 100 * v for t, v in final_values(rows, rule.metric, rule.condition).items()}
    names = made.by_arm()
    seeds = sorted({seed for _, seed in names})

    def value(levels: Arm, seed: int) -> float | None:
        return values.get(names[levels, seed])

    measured = []
    for arm, levels in arms.items():
        own = [v for seed in seeds if (v := value(levels, seed)) is not None]
        pairs = [(value(levels, seed), value(arms[NONE], seed)) for seed in seeds]
        gains = tuple(a - b for a, b in pairs if a is not None and b is not None)
        if own:
            measured.append(Confirmed(arm, levels, mean(own), gains))
    return measured


def _rule(recipe: Recipe) -> DecisionRule:
    assert recipe.rule is not None  # a recipe with fresh seeds has one
    return recipe.rule
