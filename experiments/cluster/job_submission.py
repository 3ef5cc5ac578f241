"""Send a command of this project to a Ray cluster as a job, show its log, return its exit code.

`ray job submit` does the sending as well, but returns 1 for every failure and 0 for a job that was stopped.
"""

import asyncio
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

import yaml
from ray._private.runtime_env.packaging import create_package
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.metrics.versions import commit
from pipeline.storage.paths import COMMIT, HOME, ROOT

RUNTIME_ENV = ROOT / "experiments/runtime_env.yaml"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head` and `ray dashboard cluster.yaml` put the job server."""

MOST_BYTES = 20_000_000
"""Largest upload: a few seconds on a slow line. Ray itself takes 100 MiB."""

STOPPED = 130
"""Exit code of a job that was stopped before its driver could say one: 128 + SIGINT, as ours returns."""

LAST_WORD = "biaswise: exit code"
"""Begins the last line of a job's log: Ray keeps no exit code of a job that was stopped."""

LOOK_EVERY_S = 1.0
"""Pause between two looks at a job that has no more log to show."""

CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that name every ignore file, three times, and tell of connections."""

NO_AGENT = "No available agent"
"""What the job server says while its head's agent is not up, or when it never will be."""

START_UP_S = 60
"""How long a head that has just started may take to run jobs; it takes 10 to 20 s on a busy machine."""


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
    """Return the runtime environment of a job, the project as its working directory.

    Args:
        place: ``BIASWISE_HOME`` of the job; empty leaves it to the cluster.
    """
    made: dict[str, Any] = yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))
    made["working_dir"] = str(ROOT)
    made["env_vars"][COMMIT] = commit()  # history is not sent along
    if place:
        made["env_vars"][HOME] = place
    return made


def package_bytes(env: dict[str, Any]) -> int:
    """Return the size of the archive that Ray will upload for a runtime environment, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "package.zip"
        create_package(
            env["working_dir"],
            archive,
            include_gitignore=True,
            excludes=list(env["excludes"]),
            logger=logging.getLogger(__name__),
        )
        return archive.stat().st_size


def send(words: Sequence[str], address: str, env: dict[str, Any]) -> Job:
    """Submit ``biaswise`` with these words as a job.

    Args:
        words: what comes after ``biaswise``.
        address: http address of the job server.
        env: as ``runtime_env`` makes it.

    Raises:
        SubmitError: the upload is too large, or the server cannot be reached or refuses.
    """
    size = package_bytes(env)
    if size > MOST_BYTES:
        raise SubmitError(
            f"{env['working_dir']} packs to {size / 1e6:.0f} MB, {MOST_BYTES / 1e6:.0f} MB at most; "
            f"move large files away or name them under `excludes` in {RUNTIME_ENV}"
        )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        return Job(client, _submit(client, _entrypoint(words), env))
    except (RuntimeError, ConnectionError, ValueError, AuthenticationError) as error:
        raise SubmitError(_explain(address, error)) from error


def _entrypoint(words: Sequence[str]) -> str:
    """Return a shell line that outlives the stop signal, which Ray sends to the shell as well."""
    return f"trap : INT TERM; {join(['biaswise', *words])}; code=$?; echo {LAST_WORD} $code; exit $code"


def _submit(client: JobSubmissionClient, entrypoint: str, env: dict[str, Any]) -> str:
    """Submit once the head that answers can also run jobs, which takes it some seconds longer."""
    deadline = time.monotonic() + START_UP_S
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env=env))
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_EVERY_S)


def _explain(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ConnectionError):
        cause = (
            "nothing answers; `ray start --head` starts one here, `ray dashboard cluster.yaml` reaches one"
        )
    elif isinstance(error, AuthenticationError):
        cause = "wants another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or write ~/.ray/auth_token"
    elif NO_AGENT in text:
        cause = "its head runs no jobs; see dashboard_agent.log there (is port 52365 taken?)"
    else:
        cause = text[:300]
    return f"job server {address}: {cause}"


def follow(job: Job, show: Callable[[str], None]) -> int:
    """Show a job's log until it ends.

    A connection that breaks is made again; the job does not notice, and no line is shown twice.

    Args:
        job: the job.
        show: takes text as it comes, line breaks included.

    Returns:
        The driver's exit code, also of a job that was stopped: 0 if it was done when the signal came, else
        130. 1 if the job died without a code.
    """
    shown = 0
    while True:
        try:
            shown = asyncio.run(_tail(job, show, shown))
            details = job.client.get_job_info(job.name)
            if details.status.is_terminal():
                return _exit_code(job, details, show)
        except (RuntimeError, OSError):  # the connection broke: try again, for as long as the user waits
            pass
        time.sleep(LOOK_EVERY_S)


async def _tail(job: Job, show: Callable[[str], None], shown: int) -> int:
    """Show what the log has beyond the first ``shown`` characters; return the characters shown."""
    seen = 0
    async for text in job.client.tail_job_logs(job.name):
        fresh = text[max(shown - seen, 0) :]
        seen += len(text)
        if fresh:
            show(fresh)
            shown = seen
    return shown


def _exit_code(job: Job, details: JobDetails, show: Callable[[str], None]) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        said = re.findall(rf"^{LAST_WORD} (\d+)$", job.client.get_job_logs(job.name), re.MULTILINE)
        return int(said[-1]) if said else STOPPED
    if details.driver_exit_code is None:  # its machine or its supervisor died
        show(f"{details.message}\n")
        return 1
    return int(details.driver_exit_code)
