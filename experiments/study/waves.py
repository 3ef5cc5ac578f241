"""A sequential study, wave after wave, until every verdict is settled or the budget ends.

Which trials come next, and below what they stop, is computed from the rows of trials that have ended
and from nothing else. So a study that was killed asks for the same trials when it goes on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.analysis.price import read_stopwatch
from experiments.analysis.row_checks import step_values
from experiments.analysis.screening import rule_in_force
from experiments.recipes.decision_rule import AnalysisError
from experiments.recipes.recipe import EarlyStoppingRule, Recipe
from experiments.storage.interim_analyses import read_interim_analyses
from experiments.storage.study_folder import StudyFolder, write_json
from experiments.study.next_wave import Budget, Wave, next_wave
from experiments.study.tune_runner import ExecutionOptions, Outcome, run_trials
from experiments.terminal import Terminal
from pipeline.config.early_stopping import EarlyStopping
from pipeline.metrics.rows import Row, read_rows
from pipeline.storage.trial_status import TrialState

FILE = "interim_analyses.json"
"""What was run wave by wave and why it ended, for people; nothing reads it back to decide what runs."""


@dataclass(frozen=True)
class Ending:
    """How a sequential study ended.

    Attributes:
        outcome: of all trials that were asked for.
        reason: why no further wave runs, in a sentence.
    """

    outcome: Outcome
    reason: str


def run_waves(
    recipe: Recipe, folder: StudyFolder, console: Terminal, running: ExecutionOptions, budget: Budget
) -> Ending:
    """Run waves until there is nothing more to run, or a wave cannot be completed.

    Args:
        recipe: with a design and a rule.
        folder: claimed by it.
        console: where progress is shown.
        running: how trials run.
        budget: what they may cost together.

    Raises:
        AnalysisError: before anything runs: the budget does not reach the first look.
    """
    assert recipe.design is not None
    assert recipe.rule is not None
    names = recipe.by_arm()
    outcome = Outcome((), {}, (), 0)
    running = replace(running, gpu_hours=budget.gpu_hours)
    while True:
        rows = ended_rows(recipe, folder)
        try:
            rule = rule_in_force(recipe.rule, folder.path, recipe.digest)
            timed = read_stopwatch(folder.path)
            wave = next_wave(rows, rule, recipe.design, budget, folder.gpu_hours(), timed)
        except AnalysisError as error:
            if not outcome.ran:
                raise
            return Ending(outcome, f"No verdict can be drawn: {error}.")
        asked = [names[arm, seed] for seed, arms in wave.arms_by_seed for arm in arms]
        _write_waves(folder.path / FILE, wave, recipe)
        if not asked:
            return Ending(outcome, wave.reason)
        console.print(
            f"wave {wave.look}: {len(asked)} trials. {wave.reason}", highlight=False, soft_wrap=True
        )
        early_stopping = early_stopping_of(recipe, rows, wave)
        latest = run_trials(recipe, folder, console, running, asked, early_stopping)
        outcome = _joined(outcome, latest)
        lacking = len(latest.unfinished) + sum(not _diverged(folder, name) for name in latest.failed)
        if lacking:
            return Ending(outcome, f"Wave {wave.look} lacks {lacking} of its {len(asked)} trials.")


def ended_rows(recipe: Recipe, folder: StudyFolder) -> list[Row]:
    """Return the rows of trials that are done, and the losses of those that diverged.

    Other rows of unfinished trials are left out: a metric of an early step would pass for a result.
    """
    rows = []
    for name in recipe.named_trials():
        state = folder.state(name)
        if state == TrialState.COMPLETE:
            rows += _rows_of(folder, name)
        elif state == TrialState.FAILED and _diverged(folder, name):
            rows += [row for row in _rows_of(folder, name) if row.metric == "loss"]
    return rows


def early_stopping_of(recipe: Recipe, rows: Sequence[Row], wave: Wave) -> EarlyStopping:
    """Return where the trials of a wave are measured, and below what they stop.

    The floor after a step is the worst value of all trials of earlier waves then, less the margin.
    """
    rule, early = recipe.rule, recipe.early_stopping
    if rule is None or early is None:
        return EarlyStopping()
    looks = rule.interim_analyses or (len(rule.seeds),)
    earlier = set(rule.seeds[: looks[wave.look - 2]]) if wave.look > 1 else set()
    values = step_values([row for row in rows if row.seed in earlier], rule.metric, rule.condition)
    thresholds = tuple((step, _floor(values, step, early)) for step in early.steps)
    return EarlyStopping(rule.metric, rule.condition, thresholds)


def _floor(values: dict[tuple[str, int], float], step: int, early: EarlyStoppingRule) -> float | None:
    at_step = [value for (_, at), value in values.items() if at == step and math.isfinite(value)]
    return min(at_step) - early.margin / 100 if at_step else None


def _diverged(folder: StudyFolder, name: str) -> bool:
    """Return whether a trial's loss was not finite: the verdict counts it, and it is not run again."""
    return any(row.metric == "loss" and not math.isfinite(row.value) for row in _rows_of(folder, name))


def _rows_of(folder: StudyFolder, name: str) -> list[Row]:
    path = folder.trial(name) / "rows.jsonl"
    return read_rows(path) if path.exists() else []


def _joined(one: Outcome, two: Outcome) -> Outcome:
    return Outcome(one.done + two.done, one.failed | two.failed, two.unfinished, one.ran + two.ran)


def _write_waves(path: Path, wave: Wave, recipe: Recipe) -> None:
    """Write a wave, or how the study ended. A study that was killed in between leaves the same file."""
    names = recipe.by_arm()
    waves = (
        [kept for kept in read_interim_analyses(path)["waves"] if kept["look"] < wave.look]
        if path.exists()
        else []
    )
    content = {"state": wave.state, "reason": wave.reason, "alpha_spent": round(wave.spent, 4)}
    if wave.arms_by_seed:
        seeds = recipe.rule.seeds if recipe.rule else ()
        seeds = seeds[: seeds.index(wave.arms_by_seed[-1][0]) + 1]
        earlier = {name for kept in waves for name in kept.get("trials", ())}
        trials = [name for (_, seed), name in names.items() if seed in seeds and name not in earlier]
        waves.append({"look": wave.look, **content, "trials": trials})
        write_json(path, {"waves": waves})
    elif path.exists():
        write_json(
            path, {"waves": read_interim_analyses(path)["waves"], "ended": {"look": wave.look, **content}}
        )
