"""What a study keeps on disk, and which of its trials are complete.

``study.json`` (recipe, rule, digests of what it reads), and per trial ``settings.json`` and ``status.json``.
Started again, a study skips what is complete.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.recipes.recipe import Recipe
from experiments.storage import usage
from experiments.storage.changed_settings import changed_keys, differences
from experiments.storage.corrected_rule import RULE_CHANGES, STUDY, as_begun, note_rule
from pipeline import json_files
from pipeline.config.settings import TrialSettings
from pipeline.errors import written_by_old_version
from pipeline.json_files import JsonError
from pipeline.redaction import refuse_secrets
from pipeline.storage import trial_sessions
from pipeline.storage.files import LOCKS, atomic_write, file_lock
from pipeline.storage.trial_status import TrialState, read_status

STORAGE_FILE = ".storage"
"""File of a study that remembers its URI, so that a run without the option uses the copy as well."""
FIELDS_OF_OLD_VERSION = frozenset({"factors", "worlds"})
"""Fields that ``study.json`` has in version 0.1.0, and does not have in this version."""


OVERRIDDEN = "overridden"
"""Key of ``study.json``: the words of the command line that changed the recipe."""
RULE = frozenset({"rule"})
SPELLINGS = frozenset({OVERRIDDEN, "file", RULE_CHANGES})
"""Keys that may differ between two starts of a study: what they lead to is compared."""


class StudyError(ValueError):
    """A study that cannot start; the message is one sentence."""


@dataclass(frozen=True)
class StudyFolder:
    """The folder ``<runs>/<study>``.

    Attributes:
        path: the folder; need not exist yet.
    """

    path: Path

    @property
    def has_begun(self) -> bool:
        """Whether a recipe has claimed the folder."""
        return (self.path / STUDY).exists()

    @property
    def overridden(self) -> tuple[str, ...]:
        """The words of the command line that changed the recipe that has claimed the folder."""
        return tuple(map(str, read_json(self.path / STUDY).get(OVERRIDDEN, ()))) if self.has_begun else ()

    def trial_names(self) -> tuple[str, ...]:
        """Return the names of the trials of the recipe that has claimed the folder; none if there is none."""
        return tuple(read_json(self.path / STUDY).get("trials", ())) if self.has_begun else ()

    def trial(self, name: str) -> Path:
        """Return the folder of a trial."""
        return self.path / "trials" / name

    def state(self, name: str) -> TrialState:
        """Return how far a trial is.

        Raises:
            StatusError: its status cannot be read, or the folder is that of an earlier version.
        """
        return read_status(self.trial(name)).state

    def is_complete(self, name: str) -> bool:
        """Return whether a trial is complete."""
        return self.state(name) == TrialState.COMPLETE

    def failure(self, name: str) -> str:
        """Return why a failed trial failed, one sentence; empty if it did not."""
        return read_status(self.trial(name)).error

    def reopen(self, name: str) -> None:
        """Let a trial that failed count as not ended: it is to run again."""
        if self.state(name) == TrialState.FAILED:
            trial_sessions.reopen(self.trial(name))

    def finish(self, name: str, error: str = "", details: str = "") -> None:
        """Mark a trial as ended: complete, or failed for an ``error``; see ``end_session``."""
        trial_sessions.end_session(self.trial(name), error, details)

    def gpu_hours(self) -> float:
        """Return what all trials of the study have used so far, failed and unfinished ones included."""
        return usage.gpu_hours(self.path)

    def claim(self, recipe: Recipe, inputs: Mapping[str, str]) -> Recipe:
        """Write the recipe down, or see that the folder holds this very recipe, its rule apart.

        Args:
            recipe: the study.
            inputs: digest of every file whose content decides results.

        Returns:
            The recipe, with the digest with which the study began.

        Raises:
            StudyError: the folder cannot be written, holds another study, or one of version 0.1.0.
            SecretError: settings hold a password or a token.
        """
        for settings in recipe.trials:
            refuse_secrets(settings.to_dict())
        recipe = (as_begun(self.path, recipe) if self.has_started else None) or recipe
        wanted = {
            "name": recipe.name,
            "question": recipe.question,
            "digest": recipe.digest,
            "rule": recipe.rule.to_dict() if recipe.rule else None,
            "sites": list(recipe.sites),
            "datasets": [asdict(dataset) for dataset in recipe.datasets],
            "trials": list(recipe.named_trials()),
            "inputs": dict(inputs),
            "file": recipe.file,
            OVERRIDDEN: list(recipe.overridden),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_old_version()
            if not self.has_started:
                self._forget()
            self._agree(STUDY, wanted, RULE if recipe.begun_as else frozenset(), recipe.trials)
            for name, settings in recipe.named_trials().items():
                self.trial(name).mkdir(parents=True, exist_ok=True)
                self._agree(f"trials/{name}/settings.json", settings.to_dict())
            if recipe.begun_as and recipe.rule:
                note_rule(self.path, recipe.rule)
        except OSError as error:
            raise self._unwritable(error) from error
        return recipe

    def _unwritable(self, error: OSError) -> StudyError:
        reason = os.strerror(error.errno or 0)
        return StudyError(f"{self.path}: cannot write here ({reason}); choose another --runs-dir")

    def _refuse_old_version(self) -> None:
        path = self.path / STUDY
        if path.exists() and FIELDS_OF_OLD_VERSION & set(read_json(path)):
            raise StudyError(written_by_old_version(str(path)))

    @property
    def has_started(self) -> bool:
        """Whether a trial has started."""
        return any(self.state(trial.name) != TrialState.PENDING for trial in self.path.glob("trials/*"))

    def _forget(self) -> None:
        """Remove a recipe of which no trial ever started: there is nothing to mix it up with."""
        for file in (*self.path.glob("trials/*/settings.json"), self.path / STUDY):
            file.unlink(missing_ok=True)
        for trial in self.path.glob("trials/*"):
            if not any(trial.iterdir()):
                trial.rmdir()

    def _agree(
        self,
        file: str,
        wanted: Mapping[str, Any],
        but: frozenset[str] = frozenset(),
        trials: Sequence[TrialSettings] = (),
    ) -> None:
        path = self.path / file
        if not path.exists():
            write_json(path, wanted)
            return
        found = read_json(path)
        plain = json.loads(json.dumps(wanted))
        spelled = SPELLINGS | but
        odd = sorted(key for key in differences(found, plain) if key.partition(":")[0] not in spelled)
        if odd:
            odd = [f"trials ({self._changed(trials)})" if key == "trials" else key for key in odd]
            raise StudyError(
                f"{path}: trials have run already, and since then changed: {', '.join(odd)}; "
                f"move {self.path} away or choose another --runs-dir, their results do not mix"
                f"{self._begun_as()}"
            )

    def _changed(self, trials: Sequence[TrialSettings]) -> str:
        """Return what differs between the settings of these trials and of those in the folder."""
        paths = [self.trial(name) / "settings.json" for name in self.trial_names()]
        found = [read_json(path) for path in paths if path.exists()]
        return ", ".join(changed_keys(found, trials)) or "their names or order"

    def _begun_as(self) -> str:
        """Return the words with which the study was begun, if it was begun with any."""
        begun = self.path / STUDY
        words = read_json(begun).get(OVERRIDDEN) if begun.exists() else None
        return f"; the study was begun with {shlex.join(map(str, words))}" if words else ""

    def runs_here(self) -> bool:
        """Return whether a process of this machine runs the study."""
        if not (self.path / LOCKS / "study").exists():
            return False
        try:
            with self.lock():
                return False
        except StudyError:
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process from running the same study.

        Everything that changes the folder comes after it, so that a start that is refused changes nothing.

        Raises:
            StudyError: another process runs it, or the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / LOCKS / "study", timeout_s=0.0))
            except BlockingIOError:
                raise StudyError(f"{self.path}: another process runs this study; wait for it") from None
            except OSError as error:
                raise self._unwritable(error) from error
            yield


def settings_of(trial: Path) -> TrialSettings:
    """Read the settings of a trial's folder."""
    try:
        return TrialSettings.from_dict(read_json(trial / "settings.json"))
    except JsonError as error:
        raise StudyError(f"{trial / 'settings.json'}: not the settings of a trial ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StudyError: it is missing, or no JSON.
    """
    try:
        return json_files.read_json(path, dict)
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file") from None
    except JsonError as error:
        raise StudyError(
            f"{path}: cannot be read as JSON ({error.reason}); restore it, or delete it: `biaswise study "
            f"run` writes it anew, and trials of the same recipe stay"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader, or a crash, sees all of it or none."""
    atomic_write(path, content, fsync=True)


def digest_of(path: Path) -> str:
    """Return twelve hex digits that name a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
