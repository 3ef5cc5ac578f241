"""Tasks that run in processes of their own while this process goes on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

Task = Callable[[], Any]
"""Its result can be pickled."""


def in_background(tasks: Sequence[Task], processes: int) -> Callable[[], list[Task]]:
    """Start tasks.

    Args:
        tasks: each is as long as hundreds of milliseconds.
        processes: that share the work from now on; with 0, or for one task, there are none.

    Returns:
        A function that waits for the processes and returns, for each task, a function that returns its result
        or raises its ValueError. Without processes that function runs the task.
    """
    number = min(processes, len(tasks))
    if number < 1 or len(tasks) == 1:
        return lambda: list(tasks)
    loader = DataLoader(
        _Results(tasks),
        batch_size=None,
        num_workers=number,
        prefetch_factor=-(-len(tasks) // number),  # all tasks are given out at once
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # otherwise the loader draws from the global random state
    )
    made = iter(loader)
    return lambda: list(made)


class _Known:
    """Returns a result, or raises an error, that another process came to."""

    def __init__(self, result: Any, error: Exception | None) -> None:
        self._result, self._error = result, error

    def __call__(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class _Results(Dataset[_Known]):
    """Results by number; an error is a value, because torch would wrap its message in a traceback."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> _Known:
        try:
            return _Known(self._tasks[index](), None)
        except ValueError as error:
            return _Known(None, error)


def _as_it_is(made: Any) -> Any:
    return made


def _one_thread(_: int) -> None:
    threadpool_limits(1)
