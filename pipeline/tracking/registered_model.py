"""The registered model of a study: weights and config of the recommended plan, and of no bias.

Both versions come from trials of one seed where there are such, so that they differ by the plan alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.redaction import redact
from pipeline.storage.trial_status import read_status
from pipeline.tracking.mlflow_server import default_uri
from pipeline.tracking.mlflow_store import STORE_ERRORS, open_store, short_reason

RECOMMENDED, BASELINE = "recommended", "baseline"
"""The aliases."""
PLACE = "model"
"""Folder of a run's artifacts that holds the files of a version."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        alias: what people load it by: ``RECOMMENDED`` or ``BASELINE``.
        trial: folder of the trial that trained it; MLflow has its rows.
        files: weights and config.
        description: what it is.
    """

    alias: str
    trial: Path
    files: tuple[Path, ...]
    description: str

    @property
    def size_mb(self) -> float:
        """Size of its files, 10^6 bytes."""
        return sum(path.stat().st_size for path in self.files) / 1e6

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name the content of its files."""
        whole = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]


def model_name(study: str) -> str:
    """Return the name of a study's registered model."""
    return f"biaswise-{study}"


def register(study: str, versions: Sequence[Version], uri: str | None = None) -> str:
    """Register versions, and give each its alias; what is registered already stays.

    Args:
        study: name of the study.
        versions: at most one per alias.
        uri: tracking URI; None means ``default_uri``.

    Returns:
        One sentence on why the store did not take them; empty if it did.
    """
    uri = uri or default_uri()
    try:
        with open_store(uri) as client:
            _make_model(client, study)
            for version in versions:
                _register(client, model_name(study), version)
    except STORE_ERRORS as error:
        return (
            f"MLflow at {redact(uri)} did not register {model_name(study)} ({short_reason(error)}); "
            "the same `biaswise study run` tries again"
        )
    return ""


def _make_model(client: MlflowClient, study: str) -> None:
    text = f"Weights and config of the study {study}: the recommended plan, and no bias."
    try:
        client.create_registered_model(model_name(study), {"biaswise.study": study}, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _register(client: MlflowClient, name: str, version: Version) -> None:
    digest, run_id = version.digest, read_status(version.trial).mlflow_run_id
    same = [found for found in client.search_model_versions(f"name='{name}'") if found.run_id == run_id]
    known = next((found.version for found in same if found.tags.get("biaswise.digest") == digest), None)
    if known is None:
        for path in version.files:
            client.log_artifact(run_id, str(path), PLACE)
        tags = {"biaswise.digest": digest, "biaswise.trial": version.trial.name}
        source = f"runs:/{run_id}/{PLACE}"
        known = client.create_model_version(
            name, source, run_id, tags, description=version.description
        ).version
    client.set_registered_model_alias(name, version.alias, known)
