"""Connections to MLflow: the store, its tables, and the experiment that holds all studies."""

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from pipeline.redaction import redact
from pipeline.storage.files import file_lock
from pipeline.tracking.bounded_client import BoundedClient
from pipeline.tracking.mlflow_server import default_uri, refuse_unwritable, sqlite_path

EXPERIMENT = "biaswise"
"""MLflow experiment of all studies."""

CONNECTION_ATTEMPTS = 10
"""Connections to a database whose tables another process is creating; that takes 3 s."""

ANSWER_S = 10.0
"""A request that a server has not answered by then is given up, unless the user has set another timeout."""

CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a dead server costs 5 s a request; MLflow's default of 7, 248 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{ANSWER_S:.0f}",  # seconds; a request of 1000 points takes 0.1 s
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines a run would break the progress bar
}
"""Environment variables of MLflow that hold while a store is open; what the user has set stays."""

DATABASE_S = 120.0
"""The same for a call that goes to a database itself: the first one creates 50 tables."""


class DeletedExperimentError(MlflowException):
    """The experiment was deleted; the message says how to restore it."""


STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError, ImportError)
"""What a store that cannot be used raises; ``ImportError`` if the driver of its database is missing."""


def prepare_store(uri: str | None = None) -> str:
    """Create the tables and the experiment, so that no trial waits for them.

    Args:
        uri: tracking URI; None means ``default_uri``.

    Returns:
        One sentence on why the store cannot be used; empty if it can.
    """
    uri = uri or default_uri()
    try:
        with open_store(uri) as client:
            experiment_id(client)
    except STORE_ERRORS as error:
        return (
            f"MLflow at {redact(uri)} cannot be used now ({short_reason(error)}); "
            f"rows are kept on disk, and `biaswise study sync` sends them later"
        )
    return ""


def short_reason(error: BaseException) -> str:
    """Return the first line of an error's message without passwords, at most 400 characters."""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return redact(first_line)[:400]


@contextmanager
def open_store(uri: str) -> Iterator[MlflowClient]:
    """Connect with short retries and without MLflow's log lines; each call of the client has an end.

    One process at a time has a SQLite database open: concurrent first connections fail, because each
    creates the tables.

    Raises:
        MlflowException, SQLAlchemyError, OSError, ImportError: the store cannot be used.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    changed = {key: value for key, value in CLIENT_SETTINGS.items() if key not in os.environ}
    database = sqlite_path(uri)
    with ExitStack() as stack:
        if database is not None:
            refuse_unwritable(database)
            stack.enter_context(file_lock(database.with_name(database.name + ".lock")))
        os.environ.update(changed)
        stack.callback(lambda: [os.environ.pop(key, None) for key in changed])
        client = _connect(uri)
        stack.callback(client.close)
        yield client


def _connect(uri: str) -> BoundedClient:
    """Connect to a server, or to a database that can be reached."""
    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        timeout = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]  # ours, unless the user has set another one
        return BoundedClient(lambda: MlflowClient(uri), float(timeout))
    if sqlite_path(uri) is None:  # MLflow itself tries for 100 s to reach a database server
        BoundedClient(lambda: create_engine(uri, poolclass=NullPool).connect().close(), ANSWER_S).close()
    return BoundedClient(lambda: _connect_to_database(uri), DATABASE_S)


def _connect_to_database(uri: str) -> MlflowClient:
    """Connect; try again while another process creates the tables of a database server."""
    for _ in range(CONNECTION_ATTEMPTS):
        try:
            return MlflowClient(uri)
        except (IntegrityError, ProgrammingError):  # "alembic_version already exists"
            time.sleep(random.uniform(1, 4))
    return MlflowClient(uri)


def experiment_id(client: MlflowClient) -> str:
    """Return the id of the experiment ``biaswise``; create it if it is absent.

    Raises:
        DeletedExperimentError: somebody has deleted it; MLflow would refuse every run in it.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        where = "" if "MLFLOW_TRACKING_URI" in os.environ else f"MLFLOW_TRACKING_URI={client.tracking_uri} "
        raise DeletedExperimentError(
            f"its experiment {EXPERIMENT} was deleted; `{where}mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}` restores it"
        )
    if experiment is not None:
        return str(experiment.experiment_id)
    database = sqlite_path(client.tracking_uri)
    location = (database.parent.resolve() / "mlartifacts").as_uri() if database else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs, not on chats
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=kind))
    except MlflowException:
        # another study has created it meanwhile, or the answer to the first request was lost
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return str(experiment.experiment_id)
