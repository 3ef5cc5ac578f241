"""A ranking of the layers from one training: the bias is switched off layer by layer at inference.

One trial is trained with the bias in every layer. All on/off combinations (masks) are then evaluated, and
the layers are ranked by the gain of their bias, averaged over the masks of the others. This shows how much
the trained detector relies on a bias, not what a training without it would give. A screening therefore
ranks layers and draws no verdict.

The training has a seed of its own. A seed's data order may suit the bias of one layer. If the seed were one
of the study's, the layer would rank high by the very chance that its verdict must not profit from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.recipes.decision_rule import SCREENING, AnalysisError, DecisionRule
from experiments.recipes.factorial import level_of
from experiments.recipes.recipe import Recipe, RecipeError
from pipeline.config.plan import Plan, PlanError
from pipeline.config.settings import TrialSettings
from pipeline.json_files import JsonError, check_fields, read_json
from pipeline.metrics.rows import Row, read_rows, select
from pipeline.storage.trial_status import RowsDigest, is_unchanged, rows_digest

INTERVENTION = "intervention/"
"""Prefix of the metrics of these rows; ``pipeline.evaluation.intervention`` writes them."""

FOLDER = "screening"
"""Folder of a study that holds its screening: ``masks.jsonl``, and the training."""

ROWS = "masks.jsonl"
"""The rows of a screening: one plan an on/off mask."""

RANKING = "ranking.json"
"""Ranking of a screening, written when all masks are measured, with the digest of its rows."""

MOST_SITES = 10
"""Sites that are switched: every further one doubles the masks, and 1,024 take a night."""


@dataclass(frozen=True)
class Ranked:
    """What the bias of one site adds to the accuracy of the trained detector.

    Attributes:
        site: the attention site.
        effect: points of the metric, on minus off, averaged over all masks of the other sites.
        last: points lost if this site only is switched off.
        alone: points gained if this site only is switched on.
    """

    site: str
    effect: float
    last: float
    alone: float


def screened(recipe: Recipe) -> TrialSettings:
    """Return the trial that is trained: the rule's treatment at every site, with ``screening_seed``.

    Raises:
        RecipeError: the recipe has no rule, no factors, or too many of them.
    """
    rule = rule_of(recipe)
    if not 1 <= len(recipe.sites) <= MOST_SITES:
        raise RecipeError(
            f"recipe {recipe.name}: a screening switches 1 to {MOST_SITES} sites, and it has "
            f"{len(recipe.sites)} sites"
        )
    plan = recipe.plan([rule.treatments[0]] * len(recipe.sites))
    return replace(recipe.trials[0], plan=plan, seed=screening_seed(recipe))


def screening_seed(recipe: Recipe) -> int:
    """Return the seed after the largest of the study and its confirmation."""
    return 1 + max({settings.seed for settings in recipe.trials} | set(recipe.confirmation_seeds))


def masks(recipe: Recipe) -> list[Plan]:
    """Return the plans of all on/off combinations, nothing on first."""
    rule = rule_of(recipe)
    screened(recipe)  # refuses what cannot be screened
    levels = product((rule.baseline, rule.treatments[0]), repeat=len(recipe.sites))
    return [recipe.plan(arm) for arm in levels]


def rank(rows: Sequence[Row], sites: Sequence[str], rule: DecisionRule, condition: str = "") -> list[Ranked]:
    """Rank the sites by the rule's metric, the most valuable bias first.

    Args:
        rows: of a screening, all masks.
        sites: the sites that were switched.
        rule: names metric, condition and treatment.
        condition: another sensor condition than the rule's.

    Raises:
        RecipeError: masks are missing.
    """
    wanted = select(rows, metric=INTERVENTION + rule.metric, condition=condition or rule.condition)
    values = {_mask(row.plan, sites, rule.baseline): 100 * row.value for row in wanted}
    cells = list(product((False, True), repeat=len(sites)))
    if missing := [cell for cell in cells if cell not in values]:
        raise RecipeError(
            f"{len(missing)} of {len(cells)} masks have no {rule.metric} "
            f"({condition or rule.condition}); run `biaswise study screen` again, it goes on where it stopped"
        )
    ranking = [_ranked(site, index, values, len(sites)) for index, site in enumerate(sites)]
    return sorted(ranking, key=lambda one: -one.effect)


def _ranked(site: str, index: int, values: Mapping[tuple[bool, ...], float], num_sites: int) -> Ranked:
    off = (False,) * num_sites
    on = (True,) * num_sites
    single = tuple(i == index for i in range(num_sites))
    without = tuple(i != index for i in range(num_sites))
    return Ranked(
        site,
        mean(value if mask[index] else -value for mask, value in values.items()) * 2,
        values[on] - values[without],
        values[single] - values[off],
    )


def _mask(plan: str, sites: Sequence[str], baseline: str) -> tuple[bool, ...]:
    parsed = Plan.parse(plan)
    return tuple(level_of(parsed[site]) != baseline for site in sites)


def rule_of(recipe: Recipe) -> DecisionRule:
    """Return the rule of a recipe.

    Raises:
        RecipeError: the recipe has no rule.
    """
    if recipe.rule is None:
        raise RecipeError(
            f"recipe {recipe.name} has no rule, so nothing says which bias to switch off where; "
            f"choose one that compares"
        )
    return recipe.rule


def was_edited(study_folder: Path) -> bool:
    """Return whether the rows of a study's screening are not those of which its ranking was made."""
    path = study_folder / FOLDER / RANKING
    if not path.exists():
        return False
    try:
        digest = read_json(path, dict).get("rows")
        if digest is None:
            return False
        check_fields(RowsDigest, digest)
    except JsonError:
        return True
    return not is_unchanged(path.with_name(ROWS), RowsDigest(**digest))


def ranking_record(
    path: Path, ranking: Sequence[Ranked], rule: DecisionRule, recipe_digest: str
) -> dict[str, Any]:
    """Return what ``RANKING`` holds: the order of the sites, and the digest of the rows it is made of.

    Args:
        path: rows of the screening.
        ranking: by the rule's metric and condition.
        rule: of the study.
        recipe_digest: of the study.
    """
    return {
        "recipe_digest": recipe_digest,
        "metric": rule.metric,
        "condition": rule.condition,
        "order": [one.site for one in ranking],
        "rows": asdict(rows_digest(path)),
    }


def rule_in_force(rule: DecisionRule, study_folder: Path, digest: str) -> DecisionRule:
    """Return the rule, with the order of the study's screening if it asks for one and there is one.

    Args:
        rule: of the study.
        study_folder: the study.
        digest: of its recipe, which every row of the screening carries.

    Raises:
        AnalysisError: the screening's rows are not those it wrote, are another recipe's, lack masks, or are
            of a training with a seed of the study.
    """
    path = study_folder / FOLDER / ROWS
    if rule.order_by != SCREENING or not path.exists():
        return rule
    if was_edited(study_folder):
        raise AnalysisError(f"the rows in {path} are not those that the screening wrote; run it again")
    rows = read_rows(path)
    if others := sorted({row.recipe_digest for row in rows} - {digest}):
        raise AnalysisError(f"the screening in {path} is of the recipe {others[0]}, the study of {digest}")
    if not rule.seeds:
        raise AnalysisError(
            f"the rule takes its order from the screening in {path} and names no seeds, so nothing says "
            f"whether the screening has a seed of its own; name the seeds"
        )
    if used := sorted({row.seed for row in rows} & set(rule.seeds)):
        raise AnalysisError(
            f"the screening in {path} was trained with seed {used[0]}, which the study's verdicts use: its "
            f"order would favour what that seed favours; delete {path.parent} and run `biaswise study screen`"
        )
    try:
        return replace(rule, order=tuple(one.site for one in rank(rows, rule.sites, rule)), order_by="")
    except (RecipeError, PlanError) as error:
        raise AnalysisError(str(error)) from error
