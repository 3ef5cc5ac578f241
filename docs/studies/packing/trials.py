"""Trials of a recipe that run one way on this machine, and what their time went to; ``scaling`` uses it."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from experiments.analysis.row_checks import final_values
from experiments.packing.policy import PackingRequest, packing_of
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyFolder
from experiments.study.preflight.checks import check_trials
from experiments.study.preflight.inputs import digest_inputs
from pipeline.metrics.rows import Row, read_rows, select
from pipeline.metrics.run_place import SLOT
from pipeline.runtime.event_log import starts_of
from pipeline.storage.trial_status import TrialState, read_status

PARTS = ("seconds", "start_s", "train_s", "after_s", "set_up_s", "detect_s")
"""Of a trial; see ``ended_trials``."""


def run_first(
    chosen: Recipe, folder: StudyFolder, request: PackingRequest, trials: int, console: Console
) -> None:
    """Run the first trials of a recipe in a folder of their own."""
    from experiments.study.tune_runner import ExecutionOptions, run_trials  # Ray, which prepare_ray precedes

    folder.path.mkdir(parents=True, exist_ok=True)
    packing = packing_of(chosen, folder, request, console)
    if packing.threads:  # on a CPU
        chosen = chosen.with_threads(packing.threads)
    running = ExecutionOptions(packing.concurrent, packing.arms_per_worker, packing.gpu_share, tracking=False)
    folder.claim(chosen, digest_inputs(chosen))
    check_trials(chosen, folder)
    outcome = run_trials(chosen, folder, console, running, list(chosen.named_trials())[:trials])
    for name, why in outcome.failed.items():
        console.print(f"failed: {name}: {why}", markup=False, soft_wrap=True)


def ended_trials(study: Path, way: str, rule: DecisionRule) -> list[dict[str, Any]]:
    """Return a line for each trial that is done: when, and what its time went to, in seconds.

    ``start_s``: Ray's processes, imports, data, model; ``train_s``: all steps, at the pace between the first
    and the last loss that were logged; ``after_s``: detection under all conditions, the official metric,
    latency, profile, picture; ``rows``: how many it has; ``slot``: its GPU, or its place on a CPU. Also two
    parts of these: ``set_up_s``, of ``start_s`` what comes before the first step, whose slow ones (capture of
    CUDA graphs) are the rest of it; ``detect_s``, of ``after_s`` the detections of the trial's whole cohort.
    """
    folder, lines = StudyFolder(study), []
    for path in sorted(study.glob("trials/*")):
        if folder.state(path.name) != TrialState.COMPLETE:
            continue
        rows = read_rows(path / "rows.jsonl")
        losses = {row.step: row.time for row in select(rows, metric="loss")}
        first, last = min(losses), max(losses)
        train_s = (losses[last] - losses[first]) * last / max(last - first, 1)
        sessions = read_status(path).sessions
        begun, ended = sessions[0].start, sessions[-1].end or math.nan
        profiled = min(row.time for row in select(rows, metric="kernel_ms"))  # after the detections
        lines.append(
            {
                "way": way,
                "trial": path.name,
                "begun": round(begun, 1),
                "seconds": round(ended - begun, 1),
                "start_s": round(losses[last] - train_s - begun, 1),
                "train_s": round(train_s, 1),
                "after_s": round(ended - losses[last], 1),
                "set_up_s": round(starts_of(path)[0].time - begun, 1),
                "detect_s": round(profiled - losses[last], 1),
                "rows": len(rows),
                "slot": int([*select(rows, metric=SLOT)][-1].value),
                f"{rule.metric} ({rule.condition})": points_of(rows, rule)[path.name],
            }
        )
    return lines


def hourly(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return trials per hour, from the first start of a trial to the last end; empty without trials.

    Ray's start for each trial is inside, the start of Ray itself, the checks and the probe are not.
    """
    if not lines:
        return {}
    span = max(x["begun"] + x["seconds"] for x in lines) - min(x["begun"] for x in lines)
    parts = {part: round(mean(x[part] for x in lines), 1) for part in PARTS}
    return {
        "trials": len(lines),
        "span_s": round(span, 1),
        "trials_per_hour": 3600 * len(lines) / span,
        **parts,
    }


def points_of(rows: Sequence[Row], rule: DecisionRule) -> dict[str, float]:
    """Return trial -> metric in points."""
    return {name: 100 * value for name, value in final_values(rows, rule.metric, rule.condition).items()}
