"""The stopwatch run of a study: what a bias costs, timed in processes of their own while no trial runs.

``study run`` does it after the trials (before the first wave, if there are waves), and ``study time`` when it
is asked for. The rows are in the folder ``stopwatch`` of the study; ``status.json`` beside them says why the
run ended.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path

from rich.table import Table as RichTable

from experiments.analysis.price_model import Price, fit_price, widest_half_width
from experiments.analysis.timings import METRICS, read_timings
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm
from experiments.recipes.recipe import Recipe
from experiments.reporting.tables.stopwatch import stopwatch_notes, stopwatch_table, timed_prices
from experiments.storage.study_folder import StudyError, StudyFolder, read_json, write_json
from experiments.study.progress import task_bar
from experiments.terminal import Terminal
from pipeline.config.plan import Plan
from pipeline.errors import is_user_error
from pipeline.metrics.rows import Row, read_rows
from pipeline.training.stopwatch_processes import rounds_of_processes
from pipeline.training.stopwatch_rounds import Start, TimedTrial, Until, keep_rounds

FOLDER, ROWS, STATUS = "stopwatch", "rows.jsonl", "status.json"
STOPWATCH = "stopwatch"
"""``priced_by`` of a rule whose prices come from here."""


@dataclass(frozen=True)
class Request:
    """What the stopwatch is asked for.

    Attributes:
        trial: what is timed, and where the rows go.
        rule: says how narrow the intervals must be.
        seconds: time budget.
    """

    trial: TimedTrial
    rule: DecisionRule
    seconds: float


def time_study(
    recipe: Recipe, folder: StudyFolder, console: Terminal, seconds: float | None = None, again: bool = False
) -> list[Row]:
    """Run the stopwatch of a study, or go on with it; the caller holds the study's lock.

    Args:
        recipe: with a rule, and with the threads that its trials have.
        folder: of the study.
        console: where progress is shown.
        seconds: time budget; None: that of the rule.
        again: start anew; the rows so far are kept under another name.

    Returns:
        All rows of the run.

    Raises:
        StudyError: nothing is compared, or the rows that are there were measured otherwise.
    """
    rule = recipe.rule
    if rule is None or not recipe.sites:
        raise StudyError(f"recipe {recipe.name} compares nothing, so there is no price to measure")
    place = folder.path / FOLDER
    if again or _is_disturbed(place / ROWS, recipe.sites, rule) or _has_other_plans(recipe, place):
        _set_aside(place)
    budget = rule.stopwatch_s if seconds is None else seconds
    trial = TimedTrial(recipe.trials[0], plans_of(recipe), place, recipe.digest)
    request = Request(trial, replace(rule, sites=recipe.sites), budget)
    begun = time.monotonic()
    reason = _run(request, console)
    rows = read_rows(place / ROWS)
    status = {
        "reason": reason,
        "rounds": len({row.step for row in rows}),
        "seconds": round(time.monotonic() - begun, 1),
        "recipe_digest": recipe.digest,
        "plans": [str(plan) for plan in trial.plans],
    }
    write_json(place / STATUS, status)
    return rows


def time_if_needed(recipe: Recipe, folder: StudyFolder, console: Terminal) -> None:
    """Run the stopwatch of a study that is priced by it, unless it is done; say so if it cannot run.

    A study does not lose its report because its price is missing: the sentence says what to do.

    Args:
        recipe: the study.
        folder: its folder; the caller holds its lock, and no trial runs.
        console: where progress and prices are shown.
    """
    if recipe.rule is None or recipe.rule.priced_by != STOPWATCH or is_timed(recipe, folder):
        return
    try:
        show_prices(time_study(recipe, folder, console), recipe, console)
    except (ValueError, RuntimeError) as error:
        if not is_user_error(error):
            raise
        console.print(f"no price: {error}", style="yellow", highlight=False, soft_wrap=True)


def show_prices(rows: Sequence[Row], recipe: Recipe, console: Terminal) -> None:
    """Print what the stopwatch measured.

    Raises:
        AnalysisError: the machine was disturbed, or the rounds are too few.
    """
    assert recipe.rule is not None  # it has been timed
    prices = timed_prices(rows, recipe.sites, recipe.rule)
    table = stopwatch_table(prices, recipe.rule)
    shown = RichTable(*table.columns, box=None, padding=(0, 2, 0, 0))
    for name, *values in table.lines:
        numbers = zip(values, cycle(("+.2f", ".2f")), strict=False)
        shown.add_row(str(name), *(format(value, spelling) for value, spelling in numbers))
    console.print(table.title, highlight=False, soft_wrap=True)
    console.print(shown)
    for note in stopwatch_notes(prices):
        console.print(note, highlight=False, soft_wrap=True)


def is_timed(recipe: Recipe, folder: StudyFolder) -> bool:
    """Return whether the stopwatch of this very recipe has run to its end, for the levels of its rule."""
    path = folder.path / FOLDER / STATUS
    same = path.exists() and read_json(path).get("recipe_digest") == recipe.digest
    return same and not _has_other_plans(recipe, path.parent)


def _has_other_plans(recipe: Recipe, place: Path) -> bool:
    """Return whether a run that has ended lacks plans, because the rule compared other levels then."""
    timed = read_json(place / STATUS).get("plans") if (place / STATUS).exists() else None
    return timed is not None and not {str(plan) for plan in plans_of(recipe)} <= set(timed)


def plans_of(recipe: Recipe) -> tuple[Plan, ...]:
    """Return the plans that are timed: as few as tell the fixed price and every site's own apart.

    No bias anywhere; and for each treatment a bias at one site alone, at all sites, and at all but one. With
    k sites and one treatment that makes 2 (k + 1) plans, fewer if some are equal.
    """
    assert recipe.rule is not None  # the caller has refused a recipe without one
    number, rule = len(recipe.sites), recipe.rule
    arms: list[Arm] = [(rule.baseline,) * number]
    for treatment in rule.treatments:
        arms += [_arm(number, rule.baseline, treatment, [i]) for i in range(number)]
        arms.append((treatment,) * number)
        arms += [_arm(number, treatment, rule.baseline, [i]) for i in range(number)]
    return tuple(recipe.plan(arm) for arm in dict.fromkeys(arms))


def _arm(number: int, level: str, other: str, at: Sequence[int]) -> Arm:
    return tuple(other if i in at else level for i in range(number))


def narrow_enough(rows: Sequence[Row], rule: DecisionRule) -> bool:
    """Return whether every site's price has an interval as narrow as the rule asks for.

    Args:
        rows: of a stopwatch run.
        rule: with sites.
    """
    try:
        price = _price(rows, rule)
    except AnalysisError:  # disturbed so far; more rounds may tell
        return False
    return widest_half_width(price, rule.price_points_per_percent) <= rule.price_half_width


def _price(rows: Sequence[Row], rule: DecisionRule) -> Price:
    return fit_price(read_timings(rows, rule.sites, rule.treatments, rule.price_weights))


def _is_disturbed(path: Path, sites: tuple[str, ...], rule: DecisionRule) -> bool:
    """Return whether a run that has ended is of no use, because equal plans took unequal times."""
    if not (path.parent / STATUS).exists() or not path.exists():
        return False
    rows = read_rows(path)
    try:
        for kind in METRICS:
            fit_price(read_timings(rows, sites, rule.treatments, {kind: 1.0}))
    except AnalysisError:
        return True
    return False


def _set_aside(place: Path) -> None:
    """Rename the rows of a run that is not to be continued."""
    (place / STATUS).unlink(missing_ok=True)
    if (place / ROWS).exists():
        number = len(list(place.glob("rows_before_*.jsonl"))) + 1
        (place / ROWS).rename(place / f"rows_before_{number}.jsonl")


def _run(request: Request, console: Terminal) -> str:
    """Time in processes of their own, or on the cluster; show how far it is, and return why it ended.

    Raises:
        TrialError: a process refused, or it died.
        StudyError: the cluster did.
    """
    if os.environ.get("RAY_ADDRESS"):
        from experiments.study.price_on_cluster import time_on_cluster  # imports Ray

        return time_on_cluster(request, console)
    with task_bar(console, f"stopwatch, {len(request.trial.plans)} plans") as advance:
        return keep_rounds(
            lambda rows: rounds_of_processes(request.trial, Start.after(rows)),
            request.trial.folder / ROWS,
            until(
                request, lambda _, used: advance(min(int(used), int(request.seconds)), int(request.seconds))
            ),
        )


def until(request: Request, progress: Callable[[int, float], None] = lambda rounds, seconds: None) -> Until:
    """Return when a run of the stopwatch ends; ``progress`` is told the rounds and the seconds used."""
    return Until(request.seconds, partial(narrow_enough, rule=request.rule), progress)
