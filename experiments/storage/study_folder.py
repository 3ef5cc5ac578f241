"""What a study keeps on disk, and which of its trials are done.

``study.json`` (recipe, rule, digests of what it reads), ``trials/<trial>/settings.json``, and per
trial ``DONE.json`` or ``FAILED.json`` once it has ended. Started again, a study skips what is done.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.recipes.recipe import Recipe
from pipeline.config.settings import TrialSettings
from pipeline.errors import written_by_old_version
from pipeline.metrics.rows import rows_digest
from pipeline.redaction import redact, refuse_secrets

DONE, FAILED, PARTIAL, PENDING = "done", "failed", "partial", "pending"

BEGUN = "BEGUN.json"
"""File of a trial that says when its last session began, and what the ones before it took."""


FIELDS_OF_OLD_VERSION = frozenset({"factors", "worlds"})
"""Fields that ``study.json`` has in version 0.1.0, and does not have in this version."""


class StudyError(ValueError):
    """A study that cannot start; the message is one sentence."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder ``<runs>/<study>``.

    Attributes:
        path: the folder; need not exist yet.
    """

    path: Path

    def trial(self, name: str) -> Path:
        """Return the folder of a trial."""
        return self.path / "trials" / name

    def state(self, name: str) -> str:
        """Return ``done``, ``failed``, ``partial`` (started, not ended) or ``pending``."""
        trial = self.trial(name)
        for state, file in ((DONE, "DONE.json"), (FAILED, "FAILED.json"), (PARTIAL, "rows.jsonl")):
            if (trial / file).exists():
                return state
        return PARTIAL if any(trial.glob("checkpoints/step_*")) else PENDING

    def failure(self, name: str) -> str:
        """Return why a failed trial failed, one sentence."""
        return str(read_json(self.trial(name) / "FAILED.json")["error"])

    def begin(self, name: str, gpus: float) -> None:
        """Note that a trial starts, or goes on, with so many GPUs (or parts of them).

        What it has used before is kept: of a session that was killed, up to its last sign of life.
        """
        seconds, hours = self._used(name)
        content = {"begun": time.time(), "gpus": gpus, "seconds": seconds, "gpu_hours": hours}
        write_json(self.trial(name) / BEGUN, content)

    def _used(self, name: str, now: float | None = None) -> tuple[float, float]:
        """Return seconds and GPU hours of all sessions of a trial, the last until now or its last sign."""
        trial = self.trial(name)
        if not (trial / BEGUN).exists():
            return 0.0, 0.0
        last = read_json(trial / BEGUN)
        signs = [trial / "rows.jsonl", trial / "DONE.json", trial / "FAILED.json"]
        signs += trial.glob("checkpoints/step_*")
        until = now or max((sign.stat().st_mtime for sign in signs if sign.exists()), default=0.0)
        session = max(until - last["begun"], 0.0)
        return last["seconds"] + session, last["gpu_hours"] + session * last["gpus"] / 3600

    def gpu_hours(self) -> float:
        """Return what all trials of the study have used so far, failed and unfinished ones included."""
        return sum(self._used(trial.name)[1] for trial in self.path.glob("trials/*"))

    def finish(self, name: str, error: str = "", details: str = "") -> None:
        """Mark a trial as ended, well or not.

        Args:
            name: the trial.
            error: why it failed, one sentence; empty if it is done.
            details: traceback.
        """
        seconds, hours = self._used(name, time.time())
        ended: dict[str, Any] = {"ended": time.time(), "seconds": round(seconds, 1), "gpu_hours": hours}
        ended["rows"] = asdict(rows_digest(self.trial(name) / "rows.jsonl"))
        if error:
            ended |= {"error": redact(error), "details": redact(details)}
        write_json(self.trial(name) / ("FAILED.json" if error else "DONE.json"), ended)

    def claim(self, recipe: Recipe, inputs: Mapping[str, str]) -> None:
        """Write the recipe down, or see that the folder holds this very recipe.

        Args:
            recipe: the study.
            inputs: digest of every file whose content decides results.

        Raises:
            StudyError: the folder cannot be written, holds another study, or one of version 0.1.0.
            SecretError: settings hold a password or a token.
        """
        for settings in recipe.trials:
            refuse_secrets(settings.to_dict())
        wanted = {
            "name": recipe.name,
            "question": recipe.question,
            "digest": recipe.digest,
            "rule": recipe.rule.to_dict() if recipe.rule else None,
            "sites": list(recipe.sites),
            "datasets": [asdict(dataset) for dataset in recipe.datasets],
            "trials": list(recipe.named_trials()),
            "inputs": dict(inputs),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_old_version()
            if not self._started():
                self._forget()
            self._agree("study.json", wanted)
            for name, settings in recipe.named_trials().items():
                self.trial(name).mkdir(parents=True, exist_ok=True)
                self._agree(f"trials/{name}/settings.json", settings.to_dict())
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise StudyError(
                f"{self.path}: cannot write here ({reason}); choose another --runs-dir"
            ) from error

    def _refuse_old_version(self) -> None:
        path = self.path / "study.json"
        if path.exists() and FIELDS_OF_OLD_VERSION & set(read_json(path)):
            raise StudyError(written_by_old_version(str(path)))

    def _started(self) -> bool:
        return any(self.state(trial.name) != PENDING for trial in self.path.glob("trials/*"))

    def _forget(self) -> None:
        """Remove a recipe of which no trial ever started: there is nothing to mix it up with."""
        for file in (*self.path.glob("trials/*/settings.json"), self.path / "study.json"):
            file.unlink(missing_ok=True)
        for trial in self.path.glob("trials/*"):
            if not any(trial.iterdir()):
                trial.rmdir()

    def _agree(self, file: str, wanted: Mapping[str, Any]) -> None:
        path = self.path / file
        if not path.exists():
            write_json(path, wanted)
            return
        found = read_json(path)
        plain = json.loads(json.dumps(wanted))
        odd = sorted(_differences(found, plain))
        if odd:
            raise StudyError(
                f"{path}: trials have run already, and since then changed: {', '.join(odd)}; "
                f"move {self.path} away or choose another --runs-dir, their results do not mix"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process from running the same study.

        Raises:
            StudyError: another process runs it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StudyError(f"{self.path}: another process runs this study; wait for it") from None
            yield


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values differ."""
    for key in found.keys() | wanted.keys():
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{at}{key}: ")
        elif old != new:
            yield f"{at}{key}"


def settings_of(trial: Path) -> TrialSettings:
    """Read the settings of a trial's folder."""
    try:
        return TrialSettings.from_dict(read_json(trial / "settings.json"))
    except (TypeError, KeyError) as error:
        raise StudyError(f"{trial / 'settings.json'}: not the settings of a trial ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StudyError: it is missing, or no JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise StudyError(f"{path}: cannot be read as JSON ({error}); delete it to start over") from error
    if not isinstance(found, dict):
        raise StudyError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader, or a crash, sees all of it or none."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def digest_of(path: Path) -> str:
    """Return twelve hex digits that name a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
