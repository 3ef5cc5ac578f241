"""The MLflow runs of one study: found by id or by tags, created once, doubles deleted.

The id of a trial's run is in the trial's status, that of the study's run in the cursor. Where an id is
absent, or its run was deleted or is in another store, the run is searched by its tags. A search also shows
a run that was created twice because the answer to the first request was lost.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.config.plan import Plan
from pipeline.metrics.rows import Row
from pipeline.storage.trial_status import read_status, set_mlflow_run_id
from pipeline.tracking.mlflow_store import experiment_id
from pipeline.tracking.study_reader import StoredTrial
from pipeline.tracking.sync_cursor import Cursor

MAX_RUNS = 50_000
"""Runs that one search returns at most; a limit of MLflow's REST interface."""


class StudyRuns:
    """The runs of one study in one store.

    Args:
        client: of the store.
        folder: the study.
        cursor: of the study.
    """

    def __init__(self, client: MlflowClient, folder: Path, cursor: Cursor) -> None:
        self._client = client
        self._folder = folder.resolve()
        self._cursor = cursor
        self._runs: dict[str, str] = {}  # trial -> id of its run
        self.parent = ""
        """Id of the study's run; empty before it was found."""
        self.parent_began = 0.0
        """Unix time at which that run began, seconds."""
        self.experiment = experiment_id(client)
        """Id of the experiment that holds all studies."""

    def of_trial(self, trial: StoredTrial) -> str:
        """Return the id of a trial's run; create the run if none was found."""
        if trial.folder.name not in self._runs:
            self._note_run(trial, self._create_child(trial))
        return self._runs[trial.folder.name]

    def find_study(self) -> str:
        """Return the id of the study's run if the cursor names one that is active here; else empty."""
        run = self._active_run(self._cursor.study_run)
        self.parent, self.parent_began = (run.info.run_id, run.info.start_time / 1000) if run else ("", 0.0)
        return self.parent

    def find_or_create_study(self, trials: list[StoredTrial]) -> str:
        """Find the runs of study and trials by their tags; create the study's run if there is none.

        Args:
            trials: all trials of the study that have rows.

        Returns:
            The id of the study's run.
        """
        tags = self._search(f"tags.`biaswise.study` = '{trials[0].first.study}'")
        self._note_runs(trials, tags, tags)
        families = {tag.get("mlflow.parentRunId") for tag in tags.values()}
        origin = (str(self._folder), _created_at(trials))
        parents = [tags[run_id]["mlflow.parentRunId"] for run_id in self._runs.values()][:1]
        known = parents[0] if parents else self._cursor.study_run
        parents += [  # created by a sync that died before it created a child
            run_id
            for run_id, tag in tags.items()
            if (tag.get("biaswise.folder"), tag.get("biaswise.created_at")) == origin
            and run_id not in families
        ]
        self.parent = self._keep_one(parents, known) or self._create_parent(trials)
        self.parent_began = min(trial.first.time for trial in trials)
        self._cursor.study_run = self.parent
        self._cursor.save()
        return self.parent

    def find_trials(self, trials: Iterable[StoredTrial]) -> None:
        """Find the runs of trials of a study that was found; search one only if its folder names none."""
        for trial in trials:
            run = self._active_run(read_status(trial.folder).mlflow_run_id)
            if run is not None and run.data.tags.get("mlflow.parentRunId") == self.parent:
                self._note_run(trial, run.info.run_id)
                continue
            name, study = trial.folder.name, trial.first.study
            tags = self._search(f"tags.`biaswise.study` = '{study}' and tags.`biaswise.trial` = '{name}'")
            self._note_runs([trial], tags, [self.parent])

    def _search(self, wanted: str) -> dict[str, dict[str, str]]:
        """Return the tags of active runs that fit a filter, run id -> tags."""
        runs = self._client.search_runs([self.experiment], wanted, max_results=MAX_RUNS)
        return {run.info.run_id: run.data.tags for run in runs}

    def _note_runs(
        self, trials: Iterable[StoredTrial], tags: Mapping[str, dict[str, str]], parents: Collection[str]
    ) -> None:
        """Note which runs (id -> tags) are those of trials, if their parent is one of ``parents``."""
        children: dict[tuple[str, str], list[str]] = {}
        for run_id, tag in tags.items():
            if tag.get("mlflow.parentRunId") in parents:
                identity = (tag.get("biaswise.trial", ""), tag.get("biaswise.created_at", ""))
                children.setdefault(identity, []).append(run_id)
        for trial in trials:
            if run_id := self._keep_one(
                children.get(trial.identity, []), read_status(trial.folder).mlflow_run_id
            ):
                self._note_run(trial, run_id)

    def _note_run(self, trial: StoredTrial, run_id: str) -> None:
        self._runs[trial.folder.name] = run_id
        trial.begin_at(self._cursor.bytes.get(run_id, 0))
        if read_status(trial.folder).mlflow_run_id != run_id:
            set_mlflow_run_id(trial.folder, run_id)

    def _active_run(self, run_id: str) -> Run | None:
        """Return a run; None if this store does not have it or it was deleted."""
        try:
            run = self._client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run is not None and run.info.lifecycle_stage == "active" else None

    def _keep_one(self, runs: list[str], known: str) -> str:
        """Keep the known run, or the one with most rows, and delete those that lost answers have made."""
        if not runs:
            return ""
        kept = known if known in runs else max(runs, key=lambda run_id: self._cursor.bytes.get(run_id, 0))
        for run_id in set(runs) - {kept}:
            self._client.delete_run(run_id)
        return kept

    def _create_parent(self, trials: list[StoredTrial]) -> str:
        first = min((trial.first for trial in trials), key=lambda row: row.time)
        tags = {
            "biaswise.created_at": _created_at(trials),
            "biaswise.kind": "study",
            "biaswise.study": first.study,
            "biaswise.recipe": first.recipe_digest,
            "biaswise.folder": str(self._folder),
        }
        inside = self._folder.name  # a confirmation is a study of the same name in a folder of the study
        name = first.study if inside == first.study else f"{first.study}: {inside}"
        return self._create(name, tags, first)

    def _create_child(self, trial: StoredTrial) -> str:
        first = trial.first
        name, created_at = trial.identity
        tags = {
            "mlflow.parentRunId": self.parent,
            "biaswise.kind": "trial",
            "biaswise.study": first.study,
            "biaswise.recipe": first.recipe_digest,
            "biaswise.trial": name,
            "biaswise.created_at": created_at,
            "biaswise.plan": first.plan,
            "biaswise.plan_digest": Plan.parse(first.plan).digest,
        }
        return self._create(name, tags, first)

    def _create(self, name: str, tags: dict[str, str], first: Row) -> str:
        circumstances = {f"biaswise.{key}": getattr(first, key) for key in ("device", "versions")}
        circumstances["mlflow.source.git.commit"] = first.commit
        run = self._client.create_run(
            self.experiment, milliseconds(first.time), {**tags, **circumstances}, name
        )
        return str(run.info.run_id)


def _created_at(trials: list[StoredTrial]) -> str:
    """Return the time of a study's first row: another study of its name and folder has another."""
    return f"{min(trial.first.time for trial in trials):.6f}"


def milliseconds(seconds: float) -> int:
    """Return a Unix time as MLflow writes it."""
    return round(seconds * 1000)
