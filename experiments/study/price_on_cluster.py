"""The stopwatch of a study whose trials run on a cluster: a Ray task on a machine of the cluster.

The driver of such a study has no GPU. The task gets the rows so far and returns the new ones, because the
machine that it runs on need not see the folder of the study.
"""

from dataclasses import replace

import ray
from ray.exceptions import RayError, RayTaskError

from experiments.storage.study_folder import StudyError
from experiments.study.price_run import FOLDER, ROWS, Request, until
from experiments.terminal import Terminal
from pipeline.errors import is_user_error
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.ray_train.local_cluster import ray_session
from pipeline.runtime.resource_errors import explain_resource_errors
from pipeline.storage.temporary import temporary_folder
from pipeline.training.stopwatch import rounds_of_trial
from pipeline.training.stopwatch_rounds import Start, complete_rounds, keep_rounds


def time_on_cluster(request: Request, console: Terminal) -> str:
    """Time on the cluster that ``RAY_ADDRESS`` names; return why it ended.

    Args:
        request: what to time; its folder is on this machine.
        console: where it is said that the stopwatch runs.

    Raises:
        StudyError: the stopwatch refused, or its machine went away.
    """
    path = request.trial.folder / ROWS
    before = complete_rounds(path)
    gpus = int(request.trial.settings.device == "cuda")
    what = f"stopwatch, {len(request.trial.plans)} plans, on the cluster"
    with ray_session(cpus=1, gpus=gpus), console.status(what):
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(time_in_task)
        try:
            rows, reason, refusal = ray.get(task.remote(request, before))
        except RayTaskError as error:  # the task's own error, without Ray's traceback
            raise error.cause from None
        except RayError as error:
            raise StudyError(
                f"the machine of the stopwatch went away ({type(error).__name__}); `biaswise study time` "
                f"starts it again"
            ) from error
    if refusal:
        raise StudyError(refusal)
    append_rows(path, rows)
    return reason


def time_in_task(request: Request, before: list[Row]) -> tuple[list[Row], str, str]:
    """Time on this machine; return new rows, why it ended, and why it refused (empty if it did not)."""
    with temporary_folder("stopwatch") as scratch:
        place = scratch / FOLDER
        if before:
            append_rows(place / ROWS, before)
        trial = replace(request.trial, folder=place)
        try:
            with explain_resource_errors(trial.settings, place):
                reason = keep_rounds(
                    lambda rows: rounds_of_trial(trial, Start.after(rows)), place / ROWS, until(request)
                )
        except (ValueError, RuntimeError) as error:
            if not is_user_error(error):
                raise
            return [], "", str(error)
        return read_rows(place / ROWS)[len(before) :], reason, ""
