"""Sends a command of this project to a Ray cluster as a job, and follows it to its end.

`ray job submit` returns 0 for a job that was stopped. Here a stopped job has an exit code of its own.
"""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from experiments.recipes.recipe import Recipe
from pipeline.config.provenance import files_of
from pipeline.errors import PACKAGES
from pipeline.metrics.versions import commit
from pipeline.storage.paths import COMMIT, HOME, ROOT, RUNTIME_ENV, resolve_path
from pipeline.storage.temporary import temporary_folder
from pipeline.yaml_files import parse_yaml

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head` and `ray dashboard cluster.yaml` put the job server."""

EXIT_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 130}
"""Of a job that has ended; 1 for any other status. 130 is 128 + SIGINT, as of our other commands."""

POLL_S = 1.0
"""Seconds between two requests."""

VERBOSE_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""They log each ignore file and each connection as INFO. Their warnings of large files are shown."""

NO_AGENT = "No available agent"
"""The job server's answer as long as its head's agent is not up."""

TOO_LARGE = "Maximum request body size"
"""The job server's answer to an upload above 100 MiB."""

START_UP_S = 60
"""Seconds that a head may need between its first answer and its first job; 10 to 20 on a busy machine."""


class SubmitError(RuntimeError):
    """A job that cannot be sent or followed; the message is one sentence."""


@dataclass(frozen=True)
class Job:
    """A job that was sent.

    Attributes:
        client: connection to the job server.
        name: submission id.
    """

    client: JobSubmissionClient
    name: str


def default_address() -> str:
    """Return ``RAY_API_SERVER_ADDRESS``, or a job server on this machine."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS


def runtime_env(place: str = "") -> dict[str, Any]:
    """Return the runtime environment of a job, with the project as its working directory.

    Args:
        place: ``BIASWISE_HOME`` of the job; empty leaves it to the cluster.
    """
    made: dict[str, Any] = parse_yaml(RUNTIME_ENV.read_text(encoding="utf-8"))
    made["working_dir"] = str(ROOT)
    made["env_vars"][COMMIT] = commit()  # the upload has no history
    if place:
        made["env_vars"][HOME] = place
    return made


@contextmanager
def upload(study: Recipe, place: str = "") -> Iterator[dict[str, Any]]:
    """Yield the runtime environment of a job that runs a study.

    A study file goes with the job, together with the Python files beside it, the configs that it names
    relative to the current folder, and the code. So does the code of an installed package, which has no
    folder of its own.

    Args:
        study: the study as the command line chose it, so that a config of ``--set`` goes with it.
        place: as in ``runtime_env``.

    Raises:
        SubmitError: a config cannot be read, or lies outside the current folder, so that the job would not
            find it.
    """
    made = runtime_env(place)
    if not study.file and (ROOT / "pyproject.toml").exists():
        yield made
        return
    with temporary_folder("upload") as folder:
        for package in PACKAGES:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, folder / package, ignore=leave)
        if study.file:
            for file in {Path(study.file), *Path(study.file).parent.glob("*.py")}:
                shutil.copy(file, folder / file.name)
            for file in _configs(study):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / file)
        yield {**made, "working_dir": str(folder)}


def _configs(study: Recipe) -> set[Path]:
    """Return the configs of a study file that come neither with the code nor from an absolute path."""
    here = Path.cwd()
    named = sorted({settings.config for settings in study.trials})
    shipped = [name for name in named if (ROOT / name).is_file() and Path(name).parts[0] in PACKAGES]
    own = [name for name in named if not Path(name).is_absolute() and name not in shipped]
    files: set[Path] = set()
    for config in own:
        try:
            files |= files_of(resolve_path(config).resolve(strict=True))
        except (OSError, SyntaxError, ValueError) as error:
            raise SubmitError(
                f"{study.word}: its config {config} cannot be read ({error}); correct it, or its _base_, or "
                "name another"
            ) from error
    if outside := sorted(str(file) for file in files if not file.is_relative_to(here)):
        raise SubmitError(
            f"{study.word}: its config reads {outside[0]}, which is not below {here}, so a job does not have "
            f"it; name the config by an absolute path that the cluster has, too"
        )
    return {file.relative_to(here) for file in files}


def send(words: Sequence[str], address: str, env: dict[str, Any]) -> Job:
    """Submit ``biaswise`` with these words as a job.

    Args:
        words: what comes after ``biaswise``.
        address: http address of the job server.
        env: as ``runtime_env`` makes it.

    Raises:
        SubmitError: the server cannot be reached, or refuses the upload or the job.
    """
    # Ray warns of every folder that its own list of excludes names; runtime_env.yaml and .gitignore name them
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    deadline = time.monotonic() + START_UP_S
    while True:
        try:
            client = JobSubmissionClient(address)
            # exec: Ray's stop signal reaches biaswise, and the job lasts as long as biaswise
            entrypoint = f"exec {join(['biaswise', *words])}"
            return Job(client, client.submit_job(entrypoint=entrypoint, runtime_env=env))
        except (RuntimeError, ConnectionError, ValueError, AuthenticationError) as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise SubmitError(f"job server {address}: {_explain(error)}") from error
        time.sleep(POLL_S)


def _explain(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, ConnectionError):
        return "nothing answers; `ray start --head` starts one here, `ray dashboard cluster.yaml` reaches one"
    if isinstance(error, AuthenticationError):
        return "wants another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or write ~/.ray/auth_token"
    if NO_AGENT in text:
        return "its head runs no jobs; see dashboard_agent.log there (is port 52365 taken?)"
    if TOO_LARGE in text:
        return (
            f"the upload is larger than 100 MiB; move large files out of {ROOT} "
            f"or name them under `excludes` in {RUNTIME_ENV}"
        )
    return text.splitlines()[-1][:300] if text else type(error).__name__  # above it is the server's traceback


def follow(job: Job, show: Callable[[str], None]) -> int:
    """Show a job's log until the job ends.

    Args:
        job: the job.
        show: takes text as it comes, line breaks included.

    Returns:
        0 if the job succeeded, 130 if it was stopped, else 1.

    Raises:
        SubmitError: the connection broke. The job goes on.
    """
    try:
        asyncio.run(_show_log(job, show))
        while not (details := job.client.get_job_info(job.name)).status.is_terminal():
            time.sleep(POLL_S)
    except (RuntimeError, OSError) as error:
        raise SubmitError(
            f"the connection to job {job.name} broke; the job goes on, `ray job logs -f {job.name}` shows it"
        ) from error
    if details.status == JobStatus.FAILED and details.driver_exit_code is None:
        show(f"{details.message}\n")  # its machine or its supervisor died, and the log does not say so
    return EXIT_CODES.get(details.status, 1)


async def _show_log(job: Job, show: Callable[[str], None]) -> None:
    async for text in job.client.tail_job_logs(job.name):
        show(text)
