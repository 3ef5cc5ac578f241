"""Sends what a study holds to the MLflow runs of its trials and to its own: only what they lack."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row
from pipeline.metrics.system_monitor import FILES, read_samples
from pipeline.redaction import redact
from pipeline.tracking.naming import (
    is_kernel,
    kernels_by_site,
    metric_key,
    metric_name,
    search_hint,
    system_metric,
    trial_datasets,
    trial_params,
)
from pipeline.tracking.saved_view import TRIAL_PRICE, save_view, view_link
from pipeline.tracking.study_reader import StoredTrial, end_of_line, read_end, study_state
from pipeline.tracking.study_runs import StudyRuns, milliseconds
from pipeline.tracking.study_verdicts import StudyVerdicts
from pipeline.tracking.sync_cursor import Cursor

CURSOR = "mlflow_sync.json"
"""Cursor file of a study."""
MAX_POINTS, MAX_PARAMS = 1000, 100  # per request; limits of MLflow's REST interface
STUDY_ARTIFACTS = (
    *("study.json", "report.html", "report.md", "recommended.py", "verdicts.json"),
    *("*.csv", "figures/*.png"),
)
TRIAL_ARTIFACTS = ("settings.json", "rows.jsonl", "scene.png")
"""Artifacts of a trial that has ended; of one that runs, its rows grow and are sent as points only."""
NO_VERDICT = "biaswise.no_verdict"
"""Tag of a study's run: why its last run ended without a verdict."""
HEADLINES = ("clean/NDS", "clean/mAP")
MAX_DESCRIPTION = 5000  # characters of the parent's description: MLflow refuses tags over 8000 bytes


class StudySender:
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
        """Send rows, samples of the machine, artifacts and states of trials, and the state of the study."""
        end, ended = 0.0, read_end(self._folder)
        for trial in trials:
            run_id, state = self.runs.of_trial(trial), trial.state
            if trial.sent == 0:
                self._begin(run_id, trial)
            self._send_rows(run_id, trial)
            for path in sorted(trial.folder.glob(FILES)):
                self._send_samples(run_id, path, trial.first.time)
            self._send_artifacts(run_id, trial.folder, TRIAL_ARTIFACTS[: 1 if state == "RUNNING" else None])
            cut_off = state == "RUNNING" and ended is not None  # the study has ended, and the trial has not
            self._set_state(run_id, "KILLED" if cut_off else state, trial.end)
            end = max(end, trial.end)
        self._set_state(self.runs.parent, study_state(self._folder), end)
        if ended is not None and ended.no_verdict:
            self._client.set_tag(self.runs.parent, NO_VERDICT, redact(ended.no_verdict)[:5000])
        elif NO_VERDICT in self._client.get_run(self.runs.parent).data.tags:
            self._client.delete_tag(self.runs.parent, NO_VERDICT)

    def send_study(self, trials: list[StoredTrial], verdicts: StudyVerdicts) -> None:
        """Send what lies around the trials: verdicts as tags and metrics, the report as the description."""
        latest = milliseconds(max(trial.end for trial in trials))
        self._send_prices(trials, verdicts, latest)
        save_view(self._client, self.runs.experiment, trials)
        points = [Metric(metric_name(name), value, latest, 0) for name, value in verdicts.metrics().items()]
        tags = verdicts.tags()
        if (report := self._folder / "report.md").exists():
            link = view_link("", self.runs.experiment, trials[0].first.study)
            hint = f"[The trials as a table]({link})\n\n{search_hint(trials[0].first)}"
            text = report.read_text(encoding="utf-8")
            tags["mlflow.note.content"] = hint + text[: MAX_DESCRIPTION - len(hint)]
        self._client.log_batch(
            self.runs.parent, points, tags=[RunTag(key, text) for key, text in tags.items()]
        )
        for key in self._client.get_run(self.runs.parent).data.tags:
            if key.startswith("verdict.") and key not in tags:  # of rows that have since changed
                self._client.delete_tag(self.runs.parent, key)
        self._send_artifacts(self.runs.parent, self._folder, STUDY_ARTIFACTS)

    def _send_prices(self, trials: Iterable[StoredTrial], verdicts: StudyVerdicts, time_ms: int) -> None:
        """Send what each trial's plan costs by the study's stopwatch, so that a table of trials shows it."""
        for trial in trials:
            percent = verdicts.slowdown_percent(Plan.parse(trial.first.plan))
            if percent is not None:
                price = Metric(TRIAL_PRICE, percent, time_ms, 0)
                self._client.log_batch(self.runs.of_trial(trial), [price])

    def send_progress(self, progress: Mapping[str, float]) -> None:
        """Send how far the study is; the step is the seconds since its run began."""
        if progress:
            now = time.time()
            step = max(round(now - self.runs.parent_began), 0)
            points = [
                Metric(f"progress/{name}", value, milliseconds(now), step) for name, value in progress.items()
            ]
            self._client.log_batch(self.runs.parent, points)

    def _begin(self, run_id: str, trial: StoredTrial) -> None:
        """Send what a trial is, before the first of its rows."""
        params = [
            Param(key, value[:6000]) for key, value in trial_params(trial.first, trial.settings).items()
        ]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + MAX_PARAMS])
        datasets = [
            DatasetInput(
                Dataset(
                    name[:500],
                    facts["fingerprint"] or "unknown",
                    "local" if "://" not in facts["root"] else facts["root"].partition(":")[0],
                    json.dumps({"uri": redact(facts["root"])}),
                    profile=json.dumps({key: redact(value) for key, value in facts.items()}),
                ),
                [InputTag(MLFLOW_DATASET_CONTEXT, context)],
            )
            for context, name, facts in trial_datasets(trial.first, trial.settings)
        ]
        if datasets:
            self._client.log_inputs(run_id, datasets)

    def _send_rows(self, run_id: str, trial: StoredTrial) -> None:
        unsent = trial.unsent_rows()
        tags = [
            RunTag(f"kernels.{site}", names[:5000])  # refused over 8000 bytes
            for site, names in kernels_by_site([row for row, _ in unsent]).items()
        ]
        for start in range(0, len(unsent), MAX_POINTS):
            batch = unsent[start : start + MAX_POINTS]
            self._client.log_batch(run_id, metrics=_points([row for row, _ in batch]), tags=tags)
            trial.sent = batch[-1][1]
            trial.newly_sent += len(batch)
            self._cursor.bytes[run_id] = trial.sent
            self._cursor.save()

    def _send_samples(self, run_id: str, path: Path, began: float) -> None:
        """Send what a worker saw of its machine; the step is the seconds since ``began``."""
        place = f"{run_id}/{path.name}"
        samples = read_samples(path, end_of_line(path, self._cursor.bytes.get(place, 0)))
        points = [
            Metric(system_metric(name, sample.node), value, milliseconds(sample.time), step)
            for sample, _ in samples
            for step in [max(round(sample.time - began), 0)]
            for name, value in sample.metrics.items()
        ]
        for start in range(0, len(points), MAX_POINTS):
            self._client.log_batch(run_id, metrics=points[start : start + MAX_POINTS])
        if samples:
            shared = samples[-1][0].trials
            text = f"of the machine, shared by {shared} trials that train together" if shared > 1 else ""
            self._client.set_tag(run_id, "biaswise.system_metrics", text or "of the machine that trains")
            self._cursor.bytes[place] = samples[-1][1]
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


def _points(rows: Iterable[Row]) -> list[Metric]:
    """Return the points of rows; kernels are tags, and draws are for the analysis."""
    points = [
        Metric(metric_key(row), row.value, milliseconds(row.time), row.step)
        for row in rows
        if not is_kernel(row) and row.draw is None
    ]
    return sorted(points, key=lambda point: point.key not in HEADLINES)  # the compare view opens on the first
