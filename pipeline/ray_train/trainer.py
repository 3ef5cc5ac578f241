"""Ray Train's TorchTrainer without actors that idle beside it, with a watch for hangs."""

import os
import traceback
from typing import Any

from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from pipeline.ray_train.hang_detection import HangCallback

OURS = "BIASWISE_LOCAL_RAY"
"""Set in all processes of a Ray that we started ourselves."""


class Trainer(TorchTrainer):
    """TorchTrainer without actors that would only stand by: each costs 3 s of CPU per trial to import Ray.

    The one that hands out Ray Data sets: we load data ourselves. On a local Ray also the one that clears
    up after a dead controller: it asks the dashboard who is alive, and there is none. The hook is private
    to Ray, whose version is pinned; a test fails if it moves. And with one of ours, the watch for hangs.
    """

    def __init__(self, watch: HangCallback, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._watch = watch

    def _create_default_callbacks(self) -> list[Any]:
        idle: tuple[type, ...] = (DatasetsCallback,)
        if os.environ.get(OURS):
            idle += (PlacementGroupCleanerCallback,)
        made = super()._create_default_callbacks()
        return [*(callback for callback in made if not isinstance(callback, idle)), self._watch]


def explain(error: TrainingFailedError) -> tuple[str, str]:
    """Return one sentence and the traceback of the first worker that failed."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, cause = next(iter(sorted(error.worker_failures.items())))
        details = "".join(traceback.format_exception(cause))
        return f"worker {rank}: {_last_line(cause)}", details
    return _last_line(error), "".join(traceback.format_exception(error))


def _last_line(error: BaseException) -> str:
    """Return the message itself where the error quotes a remote traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
