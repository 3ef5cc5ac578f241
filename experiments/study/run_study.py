"""One study from the first check to the report: check, run, confirm, report, send to MLflow."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.packing.policy import PackingRequest, packing_of, with_packing
from experiments.recipes.cost import takes
from experiments.recipes.recipe import Recipe
from experiments.storage.remote_study import copy_at, stored_study
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study.confirmation_run import MOST_ARMS, run_confirmation
from experiments.study.next_wave import Budget
from experiments.study.preflight.checks import (
    check_budget,
    check_data,
    check_power,
    check_tracking,
    check_trials,
)
from experiments.study.preflight.datasets import make_datasets
from experiments.study.preflight.inputs import digest_inputs, refuse_missing
from experiments.study.preflight.models import check_models
from experiments.study.preflight.values import check_values
from experiments.study.price_run import time_if_needed
from experiments.study.tune_runner import ExecutionOptions, Outcome, run_trials
from experiments.study.waves import run_waves
from experiments.terminal import Terminal
from pipeline.ray_train.hang_detection import HANG_TIMEOUT_S
from pipeline.redaction import redact
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import StudySync
from pipeline.tracking.study_reader import StudyEnd, write_end

if TYPE_CHECKING:
    from experiments.reporting.summary import Summary


@dataclass(frozen=True)
class RunOptions:
    """Options of ``biaswise study run``; none of them is part of the recipe.

    Attributes:
        runs_dir: folder of the studies.
        concurrent: groups of workers at once; None: as the recipe says.
        arms_per_worker: most trials that a group trains together; None: as the recipe says.
        auto_concurrency: measure on this machine how trials should share it.
        max_trials: most trials that may run; None: all.
        max_gpu_hours: most GPU hours that they may take; None: no limit.
        confirmation: train the recommendation with fresh seeds, if the recipe has some.
        tracking: send rows to MLflow.
        hang_timeout_s: seconds without progress after which a trial counts as hung; 0: never.
        storage: URI of a second copy of the study; empty: the URI of its earlier copy, if it has one.
        underpowered: start a study that can decide nothing at its margin.
        register: make a registered model of the recommended plan, if rows go to MLflow.
    """

    runs_dir: Path
    concurrent: int | None = None
    arms_per_worker: int | None = None
    auto_concurrency: bool = False
    max_trials: int | None = None
    max_gpu_hours: float | None = None
    confirmation: bool = True
    tracking: bool = True
    hang_timeout_s: float = HANG_TIMEOUT_S
    storage: str = ""
    underpowered: bool = False
    register: bool = True

    def budget(self, recipe: Recipe) -> Budget:
        """Return what the study may cost.

        Raises:
            AnalysisError: no trial may run.
        """
        trials = len(recipe.trials) if self.max_trials is None else self.max_trials
        return Budget(trials, math.inf if self.max_gpu_hours is None else self.max_gpu_hours)


def run_study(recipe: Recipe, options: RunOptions, console: Terminal) -> Outcome:
    """Run a study, or go on with it, and report on it.

    Args:
        recipe: the study.
        options: how to run it.
        console: where progress and report are shown.

    Returns:
        How its trials ended, those of the confirmation included.
    """
    for option, number in (
        ("--concurrent", options.concurrent),
        ("--arms-per-worker", options.arms_per_worker),
    ):
        if number is not None and number < 1:
            raise StudyError(f"{option} {number}: expected 1 or more")
    if options.hang_timeout_s < 0:
        raise StudyError(
            f"--hang-timeout {options.hang_timeout_s:g}: expected seconds, or 0 to wait for ever"
        )
    budget = options.budget(recipe)  # refuses a budget that allows nothing, before anything is downloaded
    check_values(recipe)
    folder = StudyFolder(options.runs_dir.resolve() / recipe.name)
    if any(not folder.is_complete(name) for name in recipe.named_trials()):
        refuse_missing(recipe, _about_storage(options.storage, folder))
    console.print(
        f"{recipe.question}\n{takes(recipe)}; folder {folder.path}", highlight=False, soft_wrap=True
    )
    with folder.lock(), stored_study(options.storage, folder, console) as study_sync:
        if not folder.has_begun:
            check_budget(recipe, budget)
            if not options.underpowered:
                check_power(recipe)
        return _run_in_folder(recipe, folder, options, console, study_sync)


def _about_storage(uri: str, folder: StudyFolder) -> list[str]:
    """Return why a URI cannot be used; nothing if it can."""
    try:
        if uri:
            copy_at(uri, folder.path)
    except StorageError as error:
        return [f"storage: {error}"]
    return []


def _run_in_folder(
    recipe: Recipe, folder: StudyFolder, options: RunOptions, console: Terminal, study_sync: StudySync | None
) -> Outcome:
    """Run a study whose folder is up to date and locked by this process."""
    recipe = with_packing(recipe, folder)
    recipe = folder.claim(recipe, digest_inputs(recipe))
    write_end(folder.path, None)
    try:
        return _run_claimed(recipe, folder, options, console, study_sync)
    except BaseException as error:
        _broken_off(folder, error, options.tracking)
        raise


def _run_claimed(
    recipe: Recipe, folder: StudyFolder, options: RunOptions, console: Terminal, study_sync: StudySync | None
) -> Outcome:
    """Run a study that has its folder for itself, from here on to its end or to an error."""
    budget = options.budget(recipe)
    make_datasets(recipe.datasets, console)
    check_trials(recipe, folder)
    if any(not folder.is_complete(name) for name in recipe.named_trials()):
        with console.status("checking data, plans and weights"):
            check_data(recipe)
            check_models(recipe, console)
        if options.tracking:
            check_tracking(console)
    recipe, running = _with_concurrency(recipe, folder, options, console)
    running = replace(running, study_sync=study_sync)
    if study_sync:
        study_sync.upload_study()
    outcome, reason = _run(recipe, folder, console, running, budget)
    if outcome.complete and _confirms(recipe, folder, options, budget, console):
        left = replace(running, gpu_hours=budget.gpu_hours - folder.gpu_hours())
        outcome = _joined(outcome, run_confirmation(recipe, folder, console, left))
    _close(recipe, folder, outcome, reason, options, console)
    _print_end(outcome, reason, folder, console)
    return outcome


def _confirms(
    recipe: Recipe, folder: StudyFolder, options: RunOptions, budget: Budget, console: Terminal
) -> bool:
    """Return whether the confirmation may run; say so if the budget leaves no room for it."""
    if not options.confirmation or not recipe.confirmation_seeds:
        return False
    if (used := folder.gpu_hours()) >= budget.gpu_hours:
        console.print(f"no confirmation: the study has used {used:.2g} of {budget.gpu_hours:g} GPU hours")
        return False
    done = sum(folder.is_complete(name) for name in recipe.named_trials())
    more = MOST_ARMS * len(recipe.confirmation_seeds)
    if options.max_trials is not None and done + more > options.max_trials:
        console.print(
            f"no confirmation: {done} trials have run, it takes up to {more} more, and --max-trials is "
            f"{options.max_trials}",
            soft_wrap=True,
        )
        return False
    return True


def _with_concurrency(
    recipe: Recipe, folder: StudyFolder, options: RunOptions, console: Terminal
) -> tuple[Recipe, ExecutionOptions]:
    """Choose how trials share the machine; on a CPU that may change their number of threads."""
    arms = recipe.arms_per_worker if options.arms_per_worker is None else options.arms_per_worker
    asked = PackingRequest(options.concurrent, arms, options.auto_concurrency)
    packing = packing_of(recipe, folder, asked, console)
    if packing.threads:
        recipe = recipe.with_threads(packing.threads)
        recipe = folder.claim(recipe, digest_inputs(recipe))
    return recipe, ExecutionOptions(
        packing.concurrent,
        packing.arms_per_worker,
        packing.gpu_share,
        options.tracking,
        hang_timeout_s=options.hang_timeout_s,
    )


def _run(
    recipe: Recipe, folder: StudyFolder, console: Terminal, running: ExecutionOptions, budget: Budget
) -> tuple[Outcome, str]:
    """Run trials, all at once or in waves, and the stopwatch; return how they ended, and why no more run."""
    if recipe.design is not None:
        time_if_needed(recipe, folder, console)  # before the waves: each is judged by the prices
        ending = run_waves(recipe, folder, console, running, budget)
        return ending.outcome, ending.reason
    names = list(recipe.named_trials())[: budget.trials]
    outcome = run_trials(recipe, folder, console, replace(running, gpu_hours=budget.gpu_hours), names)
    if outcome.done:
        time_if_needed(recipe, folder, console)
    left_out = len(recipe.trials) - len(names)
    return outcome, f"The budget leaves out {left_out} of {len(recipe.trials)} trials." if left_out else ""


def _joined(one: Outcome, two: Outcome | None) -> Outcome:
    """Return the outcome of study and confirmation."""
    if two is None:
        return one
    return Outcome(
        one.done + two.done, one.failed | two.failed, one.unfinished + two.unfinished, one.ran + two.ran
    )


def _print_end(outcome: Outcome, reason: str, folder: StudyFolder, console: Terminal) -> None:
    if not outcome.ran:
        console.print("every trial is done already")
    for name, why in outcome.failed.items():
        console.print(f"failed: {name}: {why}", style="red", soft_wrap=True)
        for path in sorted(folder.path.rglob(f"{name}/status.json")):  # a screening may have one, too
            console.print(f"  traceback in {path}", soft_wrap=True)
    if outcome.unfinished:
        console.print(f"{len(outcome.unfinished)} trials are unfinished; the same command goes on with them")
    if reason:
        console.print(reason, highlight=False, soft_wrap=True)


def _close(
    recipe: Recipe,
    folder: StudyFolder,
    outcome: Outcome,
    reason: str,
    options: RunOptions,
    console: Terminal,
) -> None:
    """Report on a study, and leave it in MLflow as it ended; ``reason`` says why no more trials run."""
    from experiments.study.final_report import register_models, show_report, track

    done = any(folder.is_complete(name) for name in recipe.named_trials())
    report = show_report(folder.path, console) if done else None
    write_end(folder.path, _end(outcome, reason, report.summary if report else None))
    if options.tracking:
        sent = track(folder.path, console)
        if sent and report and options.register:
            register_models(recipe, folder, report.summary, console)


def _end(outcome: Outcome, reason: str, summary: "Summary | None") -> StudyEnd:
    """Return how a run of a study ended, for MLflow."""
    if summary is not None and summary.evidence is not None and summary.evidence.verdicts:
        return StudyEnd("FINISHED")
    lacking = f"{len(outcome.failed)} trials failed, {len(outcome.unfinished)} are unfinished"
    parts = ["" if outcome.complete else f"{lacking}.", reason, summary.answer if summary else ""]
    return StudyEnd("FINISHED" if outcome.complete else "FAILED", " ".join(part for part in parts if part))


def _broken_off(folder: StudyFolder, error: BaseException, tracking: bool) -> None:
    """Leave a study that did not come to its end in MLflow as that; a server that hangs costs 10 s."""
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
    why = "it was interrupted" if interrupted else f"{type(error).__name__}: {error}"
    end = StudyEnd("KILLED" if interrupted else "FAILED", f"The run broke off: {redact(why)[:1000]}")
    write_end(folder.path, end)
    if tracking:
        from pipeline.tracking.mlflow_sync import sync

        sync(folder.path)
