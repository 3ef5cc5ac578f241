"""The default tracking URI, and MLflow's UI."""

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from pipeline.redaction import redact
from pipeline.storage.paths import home

PORT = 5000
"""Of `biaswise ui`, unless another one is asked for."""


class TrackingError(RuntimeError):
    """The MLflow UI cannot be started. The message is one sentence."""


def default_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working directory, MLflow's default."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def pages(uri: str) -> str:
    """Return the address of the pages that show a store: its own if it is a server, else `biaswise ui`'s."""
    return redact(uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{PORT}"


def refuse_port(host: str, port: int) -> None:
    """Refuse an address on which nobody can listen: the server would end without an error.

    Raises:
        TrackingError: the port is in use, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrackingError(
            f"{host}:{port}: nobody can listen there ({reason}); choose another --port or --host"
        ) from error


def served_uri() -> str:
    """Return the URI of the store that the UI is to show.

    Raises:
        TrackingError: there is nothing to show, or the URI is a server, which has its own UI.
    """
    uri = default_uri()
    if uri.startswith("http"):
        raise TrackingError(
            f"the tracking server {redact(uri)} has its own UI; open that address in a browser"
        )
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise TrackingError(f"there is no {database}; run a study or `biaswise study sync` first")
    return uri


def start_ui(host: str, port: int, uri: str) -> NoReturn:
    """Replace this process by the MLflow UI of a store, so that signals reach the server.

    It has one worker and no job runner: 2 processes and 350 MiB. MLflow's defaults take 15 and 2.2 GiB.
    """
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    sys.stdout.flush()
    # not in the command line, which every user of the machine can read: the URI may hold a password
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": uri,
    }
    os.execve(sys.executable, command, environment)


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of a URI; None if it is no SQLite database."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def refuse_unwritable(database: Path) -> None:
    """Refuse a database that cannot be written; MLflow would retry for minutes."""
    database.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(database if database.exists() else database.parent, os.W_OK):
        raise PermissionError(f"{database} is not writable")
