"""A study is a parent run, each trial a child run; sent again, nothing doubles.

Rows on disk are the truth and MLflow is a view of them. ``sync`` may be called at any time and as
often as one likes: runs are found by their tags before they are made, and MLflow's SQL stores keep a
point (key, step, time, value) once however often it is sent. A run that was made twice, because the answer
to the first request was lost, is kept once. One process at a time sends a study. The cursor file in its
folder only saves work; without it everything is sent again, to the same effect.
"""

import fcntl
import hashlib
import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row
from pipeline.redaction import redact
from pipeline.tracking.mlflow_server import default_uri, refuse_unwritable, sqlite_path
from pipeline.tracking.naming import (
    is_kernel,
    kernels_by_site,
    metric_key,
    metric_name,
    search_hint,
    trial_params,
)
from pipeline.tracking.study_reader import StoredTrial, judgement, stored_trials, study_state
from pipeline.tracking.sync_cursor import Cursor

EXPERIMENT = "biaswise"
CURSOR = "mlflow.json"
LOCK = ".sync.lock"
MOST_POINTS, MOST_PARAMS = 1000, 100  # per request; limits of MLflow's REST interface
MOST_TRIES = 10
"""Connections to a database whose tables others are making; that takes 3 s."""

SHORT_RETRIES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a dead server costs 5 s a request; MLflow's default of 7, 248 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; a request of 1000 points takes 0.1 s
}
STUDY_ARTIFACTS = ("study.json", "report.html", "report.md", "recommended.py", "*.csv", "figures/*.png")
TRIAL_ARTIFACTS = ("settings.json", "rows.jsonl", "scene.png")
HEADLINES = ("clean/NDS", "clean/mAP")
LONGEST_NOTE = 5000  # characters of the parent's description: MLflow refuses tags over 8000 bytes


@dataclass(frozen=True)
class SyncReport:
    """What a ``sync`` did.

    Attributes:
        uri: the tracking store or server, without its password.
        trials: trials of the study that have rows.
        sent: rows sent by this call.
        unsent: rows that MLflow still lacks.
        parent: run id of the study; empty if it could not be reached.
        warning: one sentence on why rows stayed behind; empty if none did.
    """

    uri: str
    trials: int
    sent: int
    unsent: int
    parent: str = ""
    warning: str = ""


def sync(study_folder: Path, uri: str | None = None) -> SyncReport:
    """Send what MLflow lacks of a study: runs, params, metrics, artifacts, states.

    A store that cannot be reached is a warning in the report, never an exception: rows stay where they
    are and the next ``sync`` sends them.

    Args:
        study_folder: ``runs/<study>``.
        uri: tracking URI; None asks ``default_uri``.

    Raises:
        RowsError: a rows file is broken elsewhere than in its last line.
    """
    uri = uri or default_uri()
    shown = redact(uri)  # it may hold the password of a database
    trials = stored_trials(study_folder)
    total = sum(len(trial.rows) for trial in trials)
    if not trials:
        return SyncReport(shown, 0, 0, 0, warning=f"{study_folder} has no rows yet; nothing was sent")
    before, parent, warning = 0, "", ""
    try:
        with _sole_sender(study_folder), _store(uri) as client:
            cursor = Cursor.load(study_folder / CURSOR)  # now that nobody else writes it
            session = _Session(client, study_folder, cursor)
            parent = session.open_runs(trials)
            before = sum(trial.sent for trial in trials)
            session.send(trials)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: no driver for it
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warning = (
            f"MLflow at {shown} did not take everything ({redact(first_line)[:200]}); the rows are safe in "
            f"{study_folder}, send them later with `biaswise study sync`"
        )
    now = sum(trial.sent for trial in trials)
    return SyncReport(shown, len(trials), now - before, total - now, parent, warning)


class _Session:
    """One conversation with a store about one study."""

    def __init__(self, client: MlflowClient, folder: Path, cursor: Cursor) -> None:
        self._client = client
        self._folder = folder.resolve()
        self._cursor = cursor
        self._experiment = _experiment(client)
        self._runs: dict[tuple[str, str], str] = {}
        self._parent = ""

    def open_runs(self, trials: list[StoredTrial]) -> str:
        """Find or make the parent and learn which children exist; return the parent's id."""
        study = trials[0].rows[0].study
        runs = list(self._search(f"tags.`biaswise.study` = '{study}'"))
        tags = {run.info.run_id: run.data.tags for run in runs}
        wanted = {trial.identity for trial in trials}
        mine: dict[tuple[str, str], list[str]] = {}
        for run_id, tag in tags.items():
            identity = (tag.get("biaswise.trial", ""), tag.get("biaswise.born", ""))
            if identity in wanted and tag.get("mlflow.parentRunId") in tags:
                mine.setdefault(identity, []).append(run_id)
        self._runs = {identity: self._only_one(found) for identity, found in mine.items()}
        families = {tag.get("mlflow.parentRunId") for tag in tags.values()}
        parents = [tags[run_id]["mlflow.parentRunId"] for run_id in self._runs.values()][:1]
        born = (str(self._folder), _born(trials))
        parents += [  # made by a sync that died before its first child
            run_id
            for run_id, tag in tags.items()
            if (tag.get("biaswise.folder"), tag.get("biaswise.born")) == born and run_id not in families
        ]
        self._parent = self._only_one(parents) if parents else self._make_parent(study, trials)
        for trial in trials:
            run_id = self._runs.get(trial.identity, "")
            trial.sent = min(self._cursor.rows.get(run_id, 0), len(trial.rows))
        return self._parent

    def _only_one(self, runs: list[str]) -> str:
        """Keep the run that has rows, or the first; delete what repeated requests have made."""
        kept = max(runs, key=lambda run_id: self._cursor.rows.get(run_id, 0))
        for run_id in set(runs) - {kept}:
            self._client.delete_run(run_id)
        return kept

    def send(self, trials: list[StoredTrial]) -> None:
        """Send rows, artifacts and states of all trials, then those of the study."""
        for trial in trials:
            run_id = self._runs.get(trial.identity) or self._make_child(trial)
            self._send_rows(run_id, trial)
            self._send_artifacts(run_id, trial.folder, TRIAL_ARTIFACTS)
            self._set_state(run_id, trial.state, trial.rows[-1].time)
        latest = max(trial.rows[-1].time for trial in trials)
        self._send_verdicts(trials)
        self._send_artifacts(self._parent, self._folder, STUDY_ARTIFACTS)
        self._set_state(self._parent, study_state(self._folder, trials), latest)

    def _make_parent(self, study: str, trials: list[StoredTrial]) -> str:
        first = min(trials, key=lambda trial: trial.rows[0].time).rows[0]
        tags = {
            "biaswise.born": _born(trials),
            "biaswise.kind": "study",
            "biaswise.study": study,
            "biaswise.recipe": first.recipe_digest,
            "biaswise.folder": str(self._folder),
        }
        inside = self._folder.name  # a confirmation is a study of the same name in a folder of the study
        return self._create(study if inside == study else f"{study}: {inside}", tags, first)

    def _make_child(self, trial: StoredTrial) -> str:
        first = trial.rows[0]
        name, born = trial.identity
        tags = {
            "mlflow.parentRunId": self._parent,
            "biaswise.kind": "trial",
            "biaswise.study": first.study,
            "biaswise.recipe": first.recipe_digest,
            "biaswise.trial": name,
            "biaswise.born": born,
            "biaswise.plan": first.plan,
            "biaswise.plan_digest": Plan.parse(first.plan).digest,
        }
        return self._create(name, tags, first)

    def _create(self, name: str, tags: dict[str, str], first: Row) -> str:
        circumstances = {f"biaswise.{key}": getattr(first, key) for key in ("device", "versions")}
        circumstances["mlflow.source.git.commit"] = first.commit
        run = self._client.create_run(
            self._experiment, _milliseconds(first.time), {**tags, **circumstances}, name
        )
        return str(run.info.run_id)

    def _send_rows(self, run_id: str, trial: StoredTrial) -> None:
        if trial.sent == 0:
            params = [
                Param(key, value[:6000]) for key, value in trial_params(trial.rows, trial.settings).items()
            ]
            for start in range(0, len(params), MOST_PARAMS):
                self._client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        while trial.sent < len(trial.rows):
            batch = trial.rows[trial.sent : trial.sent + MOST_POINTS]
            points = [
                Metric(metric_key(row), row.value, _milliseconds(row.time), row.step)
                for row in batch
                if not is_kernel(row) and row.draw is None
            ]
            points.sort(key=lambda point: point.key not in HEADLINES)  # the compare view opens on the first
            kernels = kernels_by_site(trial.rows).items()
            tags = [
                RunTag(f"kernels.{site}", names[:5000]) for site, names in kernels
            ]  # refused over 8000 bytes
            self._client.log_batch(run_id, metrics=points, tags=tags)
            trial.sent += len(batch)
            self._cursor.rows[run_id] = trial.sent
            self._cursor.save()

    def _send_artifacts(self, run_id: str, folder: Path, patterns: tuple[str, ...]) -> None:
        for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            inside = path.parent.relative_to(folder).as_posix()
            if self._cursor.artifacts.get(f"{run_id}/{inside}/{path.name}") != digest:
                self._client.log_artifact(run_id, str(path), None if inside == "." else inside)
                self._cursor.artifacts[f"{run_id}/{inside}/{path.name}"] = digest
                self._cursor.save()

    def _send_verdicts(self, trials: list[StoredTrial]) -> None:
        """Copy the report's answer to the parent's description, the verdicts to its tags and metrics."""
        tags, numbers = judgement(self._folder)
        latest = _milliseconds(max(trial.rows[-1].time for trial in trials))
        points = [Metric(metric_name(name), value, latest, 0) for name, value in numbers.items()]
        if (report := self._folder / "report.md").exists():
            hint = search_hint(trials[0].rows[0])
            tags["mlflow.note.content"] = (
                hint + report.read_text(encoding="utf-8")[: LONGEST_NOTE - len(hint)]
            )
        self._client.log_batch(self._parent, points, tags=[RunTag(key, text) for key, text in tags.items()])
        for key in self._client.get_run(self._parent).data.tags:
            if key.startswith("verdict.") and key not in tags:  # of rows that have since changed
                self._client.delete_tag(self._parent, key)

    def _set_state(self, run_id: str, state: str, end: float) -> None:
        if state == "RUNNING":
            self._client.update_run(run_id, state)
        else:
            self._client.set_terminated(run_id, state, _milliseconds(end))

    def _search(self, wanted: str) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], wanted, ViewType.ACTIVE_ONLY, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def _born(trials: list[StoredTrial]) -> str:
    """Tell a study from another of its name and folder, which was deleted or lies on another machine."""
    return f"{min(trial.rows[0].time for trial in trials):.6f}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


@contextmanager
def _sole_sender(study_folder: Path) -> Iterator[None]:
    """Wait for whoever sends the same study; two would make its runs twice."""
    with (study_folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _store(uri: str) -> Iterator[MlflowClient]:
    """Open a store with short retries, quietly; let one process at a time create a database's tables."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    changed = {key: value for key, value in SHORT_RETRIES.items() if key not in os.environ}
    database = sqlite_path(uri)
    with ExitStack() as stack:
        if database is not None:
            refuse_unwritable(database)
            lock = stack.enter_context(database.with_name(database.name + ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # concurrent starts die on "table metrics already exists"
        os.environ.update(changed)
        stack.callback(lambda: [os.environ.pop(key, None) for key in changed])
        yield _client(uri)


def _client(uri: str) -> MlflowClient:
    """Connect; whoever finds an empty database while another makes its tables tries again."""
    for _ in range(MOST_TRIES):
        try:
            return MlflowClient(uri)
        except (IntegrityError, ProgrammingError):  # "alembic_version already exists"
            time.sleep(random.uniform(1, 4))
    return MlflowClient(uri)


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    database = sqlite_path(client.tracking_uri)
    location = (database.parent.resolve() / "mlartifacts").as_uri() if database else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs, not on chats
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=kind))
    except MlflowException:
        found = client.get_experiment_by_name(EXPERIMENT)  # another study was faster, or an answer was lost
        if found is None:
            raise
        return str(found.experiment_id)
