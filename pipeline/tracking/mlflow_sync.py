"""A study in MLflow: a parent run for the study, a child run for each trial.

Rows on disk are the truth and MLflow is a view of them. ``sync`` may be called at any time, any number of
times, and nothing doubles:

- ``StudyRuns`` finds a run before it creates one.
- MLflow's SQL stores keep a point (key, step, time, value) once, however often it is sent.
- One process at a time sends a study.
"""

import fcntl
import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from pipeline.redaction import redact
from pipeline.tracking.mlflow_server import default_uri
from pipeline.tracking.mlflow_store import STORE_ERRORS, open_store, short_reason
from pipeline.tracking.naming import (
    is_kernel,
    kernels_by_site,
    metric_key,
    metric_name,
    search_hint,
    trial_params,
)
from pipeline.tracking.study_reader import StoredTrial, stored_trials, study_state
from pipeline.tracking.study_runs import StudyRuns, milliseconds
from pipeline.tracking.study_verdicts import StudyVerdicts, read_verdicts
from pipeline.tracking.sync_cursor import Cursor

CURSOR = "mlflow_sync.json"
"""Cursor file of a study."""
LOCK = ".sync.lock"
MAX_POINTS, MAX_PARAMS = 1000, 100  # per request; limits of MLflow's REST interface
STUDY_ARTIFACTS = (
    *("study.json", "report.html", "report.md", "recommended.py", "verdicts.json"),
    *("*.csv", "figures/*.png"),
)
TRIAL_ARTIFACTS = ("settings.json", "rows.jsonl", "scene.png")
HEADLINES = ("clean/NDS", "clean/mAP")
MAX_DESCRIPTION = 5000  # characters of the parent's description: MLflow refuses tags over 8000 bytes


@dataclass(frozen=True)
class SyncReport:
    """What a ``sync`` did.

    Attributes:
        uri: the tracking store or server, without its password.
        trials: trials that were looked at and have rows.
        sent: rows sent by this call.
        unsent: rows of these trials that MLflow still lacks.
        parent: run id of the study; empty if the store could not be reached.
        warning: one sentence on why rows stayed behind; empty if none did.
    """

    uri: str
    trials: int
    sent: int
    unsent: int
    parent: str = ""
    warning: str = ""


def sync(
    study_folder: Path,
    uri: str | None = None,
    trials: Collection[str] | None = None,
    verdicts: StudyVerdicts | None = None,
) -> SyncReport:
    """Send what MLflow lacks of a study: runs, params, metrics, artifacts, states.

    A store that cannot be reached is a warning in the report, never an exception: rows stay where they
    are and the next ``sync`` sends them.

    Args:
        study_folder: ``runs/<study>``.
        uri: tracking URI; None means ``default_uri``.
        trials: names of the trials that have changed; only their files are read and sent. None means all
            trials and what lies around them: report, verdicts, state. So does a store that does not know
            the study yet.
        verdicts: of the study; None reads its ``verdicts.json``.

    Raises:
        RowsError: a rows file is broken elsewhere than in its last line.
        VerdictsError: ``verdicts.json`` cannot be read.
    """
    uri = uri or default_uri()
    stored = stored_trials(study_folder, trials)
    if not stored:
        warning = f"{study_folder} has no rows yet; nothing was sent" if trials is None else ""
        return SyncReport(redact(uri), 0, 0, 0, warning=warning)
    parent, warning = "", ""
    try:
        with _exclusive_sender(study_folder), open_store(uri) as client:
            sender = _StudySender(client, study_folder)
            parent = "" if trials is None else sender.runs.find_study()
            if parent:
                sender.runs.find_trials(stored)
                sender.send_trials(stored)
            else:
                stored = stored if trials is None else stored_trials(study_folder)
                parent = sender.runs.find_or_create_study(stored)
                sender.send_trials(stored)
                sender.send_study(stored, read_verdicts(study_folder) if verdicts is None else verdicts)
    except STORE_ERRORS as error:
        warning = (
            f"MLflow at {redact(uri)} did not take everything ({short_reason(error)}); the rows are safe in "
            f"{study_folder}, send them later with `biaswise study sync`"
        )
    sent, unsent = sum(t.newly_sent for t in stored), sum(len(t.rows) - t.sent for t in stored)
    return SyncReport(redact(uri), len(stored), sent, unsent, parent, warning)


class _StudySender:
    """Sends one study to one store.

    Args:
        client: of the store.
        folder: the study.
    """

    def __init__(self, client: MlflowClient, folder: Path) -> None:
        self._client = client
        self._folder = folder.resolve()
        self._cursor = Cursor.load(folder / CURSOR)
        self.runs = StudyRuns(client, folder, self._cursor)

    def send_trials(self, trials: Iterable[StoredTrial]) -> None:
        """Send rows, artifacts and states of trials, and the state of the study."""
        end = 0.0
        for trial in trials:
            run_id = self.runs.of_trial(trial)
            self._send_rows(run_id, trial)
            self._send_artifacts(run_id, trial.folder, TRIAL_ARTIFACTS)
            self._set_state(run_id, trial.state, trial.rows[-1].time)
            end = max(end, trial.rows[-1].time)
        self._set_state(self.runs.parent, study_state(self._folder), end)

    def send_study(self, trials: list[StoredTrial], verdicts: StudyVerdicts) -> None:
        """Send what lies around the trials: verdicts as tags and metrics, the report as the description."""
        latest = milliseconds(max(trial.rows[-1].time for trial in trials))
        points = [Metric(metric_name(name), value, latest, 0) for name, value in verdicts.metrics().items()]
        tags = verdicts.tags()
        if (report := self._folder / "report.md").exists():
            hint = search_hint(trials[0].rows[0])
            text = report.read_text(encoding="utf-8")
            tags["mlflow.note.content"] = hint + text[: MAX_DESCRIPTION - len(hint)]
        self._client.log_batch(
            self.runs.parent, points, tags=[RunTag(key, text) for key, text in tags.items()]
        )
        for key in self._client.get_run(self.runs.parent).data.tags:
            if key.startswith("verdict.") and key not in tags:  # of rows that have since changed
                self._client.delete_tag(self.runs.parent, key)
        self._send_artifacts(self.runs.parent, self._folder, STUDY_ARTIFACTS)

    def _send_rows(self, run_id: str, trial: StoredTrial) -> None:
        if trial.sent == 0:
            params = [
                Param(key, value[:6000]) for key, value in trial_params(trial.rows, trial.settings).items()
            ]
            for start in range(0, len(params), MAX_PARAMS):
                self._client.log_batch(run_id, params=params[start : start + MAX_PARAMS])
        while trial.sent < len(trial.rows):
            batch = trial.rows[trial.sent : trial.sent + MAX_POINTS]
            points = [
                Metric(metric_key(row), row.value, milliseconds(row.time), row.step)
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
            trial.newly_sent += len(batch)
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

    def _set_state(self, run_id: str, state: str, end: float) -> None:
        """Set the state of a run; ``end`` is its Unix time, seconds, if it has ended."""
        if state == "RUNNING":
            self._client.update_run(run_id, state)
        else:
            self._client.set_terminated(run_id, state, milliseconds(end))


@contextmanager
def _exclusive_sender(study_folder: Path) -> Iterator[None]:
    """Wait for another process that sends the same study: two would create its runs twice."""
    with (study_folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
