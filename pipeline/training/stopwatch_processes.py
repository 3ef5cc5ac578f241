"""The stopwatch in processes of their own, several at once on a CPU, each on a core with one thread.

Each process times whole rounds, so a price compares times of one process only. The model of a process lives
as long as the process, and no trial runs beside it.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from pipeline.errors import TrialError, is_user_error
from pipeline.processes import leave_ctrl_c_to_parent
from pipeline.runtime.cores import available_cores
from pipeline.training.stopwatch_rounds import Rounds, Start, TimedTrial

MOST = 2
"""Processes on a CPU. Memory is shared by all cores, so that more of them would wait for it."""


def rounds_of_processes(trial: TimedTrial, start: Start) -> Rounds:
    """Time in as many processes as there are cores, at most ``MOST``; on a GPU in one.

    Args:
        trial: what is timed.
        start: of the first process.

    Yields:
        The rows of one round after another, as the processes complete them. Closing ends the processes.

    Raises:
        TrialError: a process refused, and why; or it died.
    """
    number = min(available_cores(), MOST) if trial.settings.device == "cpu" else 1
    starts = [replace(start, process=index, processes=number) for index in range(number)]
    with _processes(trial, starts) as pipes:
        while True:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)  # nothing else was given
                try:
                    answer = pipe.recv()
                except EOFError:
                    raise TrialError(
                        "the process of the stopwatch died; its rounds are kept, and `biaswise study time` "
                        "goes on"
                    ) from None
                if isinstance(answer, str):
                    raise TrialError(answer)
                yield answer


@contextmanager
def _processes(trial: TimedTrial, starts: list[Start]) -> Iterator[list[Connection]]:
    """Start processes; the pipes to them are open inside the ``with``, and they are ended after it."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pipes, processes = [], []
    try:
        for start in starts:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(trial, start, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def serve(trial: TimedTrial, start: Start, pipe: Connection) -> None:
    """Time in this process; send the rows of each round, or a sentence that says why not.

    Args:
        trial: what is timed.
        start: where this process begins.
        pipe: to the process that keeps the rows.
    """
    leave_ctrl_c_to_parent()
    from pipeline.runtime.resource_errors import explain_resource_errors
    from pipeline.training.stopwatch import rounds_of_trial  # imports torch: seconds

    try:
        with explain_resource_errors(trial.settings, trial.folder):
            for rows in rounds_of_trial(trial, start):
                pipe.send(rows)
    except (ValueError, RuntimeError) as error:
        if not is_user_error(error):
            raise
        pipe.send(str(error))
