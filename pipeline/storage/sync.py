"""The copy of a study folder at a URI.

The folder itself stays local: it needs appends, renames and locks, and a bucket has none. New files are
copied to the URI after each checkpoint and each trial, rows before checkpoints and ``status.json`` last, so
that a study can be resumed from whatever the URI holds. Whoever resumes it elsewhere downloads it first.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from pipeline.json_files import parse_json
from pipeline.storage.files import LOCKS
from pipeline.storage.remote import RemoteStore, StorageError, short
from pipeline.storage.sync_state import (
    files_of,
    is_older,
    is_removable,
    read_sync_state,
    stamp,
    unit_lock,
    unit_of,
    upload_order,
    write_sync_state,
)

LEASES = ".leases"
"""Folder at the URI that holds the leases of processes that run the study (``pipeline.storage.lease``)."""

LARGE_FILES = ("checkpoints", "weights.safetensors", "predictions")
"""Files that only a resumed trial needs: whoever looks at a study does not download them."""

RETRY_LIMIT_S = 600.0
"""How long the end of a trial waits for a store that does not answer, before the trial counts as failed."""


@dataclass(frozen=True)
class StudySync:
    """A study folder and its copy. Small and picklable: workers elsewhere get one, too.

    Attributes:
        uri: of the study, its name included.
        folder: the local folder; need not exist.
        lease_id: id of the lease under which the study runs; files are copied only while it is there. Empty
            for a reader.
    """

    uri: str
    folder: Path
    lease_id: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the names alone to another process: connections, and what they know, stay."""
        return StudySync, (self.uri, self.folder, self.lease_id)

    @cached_property
    def store(self) -> RemoteStore:
        """The files at the URI."""
        return RemoteStore(self.uri)

    def holds(self) -> bool:
        """Return whether the lease is there, or the store does not answer."""
        try:
            return not self.lease_id or self.store.exists(f"{LEASES}/{self.lease_id}.json")
        except OSError:
            return True

    def upload_study(self, patience_s: float = 0.0) -> None:
        """Copy what is new anywhere in the study, the trials first.

        Raises:
            StorageError: see ``upload``.
        """
        trials = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("trials/*")]
        for unit in (*sorted(trials), ""):
            self.upload(unit, patience_s)

    def upload(self, unit: str = "", patience_s: float = 0.0) -> None:
        """Copy what is new of a unit, in the order in which it is safe to be cut off.

        Args:
            unit: a trial, relative to the study; empty for what lies around the trials.
            patience_s: how long to try again if the store does not answer.

        Raises:
            StorageError: the store does not take it, or another process has taken the study over.
        """
        deadline, pause = time.monotonic() + patience_s, 2.0
        while True:
            try:
                with unit_lock(self.folder / unit):
                    self._push(unit)
                return
            except OSError as error:
                if time.monotonic() + pause > deadline:
                    raise StorageError(
                        f"{self.uri} did not take {unit or 'the study'} ({short(error)}); its files are in "
                        f"{self.folder / unit}, and the same command copies them once the store answers"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 60.0)

    def _push(self, unit: str) -> None:
        here = self.folder / unit
        ledger = read_sync_state(here)
        files = {name: stamp(here / name) for name in files_of(here, unit)}
        fresh = sorted((name for name, now in files.items() if ledger.get(name) != now), key=upload_order)
        gone = sorted(name for name in ledger if name not in files and is_removable(name))
        if (fresh or gone) and self.lease_id and not self.store.exists(f"{LEASES}/{self.lease_id}.json"):
            raise StorageError(
                f"{self.uri}: another process has taken this study over; nothing is copied there"
            )
        for name in fresh:
            if (here / name).exists():  # an old checkpoint may have been removed meanwhile
                self.store.upload(here / name, f"{unit}/{name}".lstrip("/"))
                ledger[name] = files[name]
                write_sync_state(here, ledger)
        for name in gone:  # last; state.json before its tensors, by the alphabet
            self.store.remove(f"{unit}/{name}".lstrip("/"))
            del ledger[name]
            write_sync_state(here, ledger)

    def download_study(self) -> int:
        """Download what is newer at the URI, large files apart; return the number of files.

        Raises:
            StorageError: the store does not answer, there is no such bucket, or the folder holds another
                study.
        """
        with self._explained():
            listed = self._listed()
            self._refuse_another(listed)
            units = sorted({unit_of(name) for name in listed})
            return sum(self._fetch(unit, listed) for unit in units)

    def download(self, unit: str, heavy: bool = True, exact: bool = False) -> None:
        """Download what is newer at the URI of one trial.

        Args:
            unit: the trial, relative to the study.
            heavy: its newest checkpoint and its weights as well.
            exact: remove local checkpoints that the URI does not have; for ranks that follow rank 0.

        Raises:
            StorageError: the store does not answer.
        """
        with self._explained(), unit_lock(self.folder / unit):
            listed = self._listed(unit)
            self._fetch(unit, listed, heavy)
            if heavy:
                self._fetch_checkpoint(unit, listed, exact)

    def _refuse_another(self, listed: dict[str, fs.FileInfo]) -> None:
        here = self.folder / "study.json"
        if "study.json" not in listed or not here.exists():
            return
        ours, theirs = (
            parse_json(text, dict, "study.json").get("digest")
            for text in (here.read_bytes(), self.store.read("study.json"))
        )
        if ours != theirs:
            raise StorageError(
                f"{self.uri} holds the recipe {theirs} and {self.folder} the recipe {ours}; move the folder "
                f"away, or choose another --storage"
            )

    def _fetch(self, unit: str, listed: dict[str, fs.FileInfo], heavy: bool = False) -> int:
        here = self.folder / unit
        start = len(unit) + 1 if unit else 0
        theirs = {name[start:]: info for name, info in listed.items() if unit_of(name) == unit}
        if unit and "rows.jsonl" in theirs:
            self._make_way(unit)
        ledger = read_sync_state(here)
        fetched = 0
        for name, info in sorted(theirs.items(), key=lambda item: upload_order(item[0])):
            if name.startswith("checkpoints/") or (name.startswith(LARGE_FILES) and not heavy):
                continue
            if not (here / name).exists() or (
                is_older(here / name, info) and ledger.get(name) == stamp(here / name)
            ):
                self.store.download(f"{unit}/{name}".lstrip("/"), here / name)
                os.utime(here / name, (info.mtime.timestamp(),) * 2)  # GPU hours are read off it
                ledger[name] = stamp(here / name)
                fetched += 1
        if fetched:
            write_sync_state(here, ledger)
        return fetched

    def _fetch_checkpoint(self, unit: str, listed: dict[str, fs.FileInfo], exact: bool) -> None:
        """Download the newest complete checkpoint in one step; ``state.json`` is its last file."""
        place = self.folder / unit / "checkpoints"
        steps = sorted(PurePosixPath(name).parent.name for name in listed if name.endswith("/state.json"))
        for path in place.glob("step_*"):
            if exact and path.name not in steps[-1:]:
                shutil.rmtree(path)
        if not steps or (place / steps[-1]).exists():
            return
        partial = place / f".{steps[-1]}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name in listed:
            if PurePosixPath(name).parent.name == steps[-1]:
                self.store.download(name, partial / PurePosixPath(name).name)
        partial.rename(place / steps[-1])
        here = self.folder / unit
        fetched = {path.relative_to(here).as_posix(): stamp(path) for path in (place / steps[-1]).iterdir()}
        write_sync_state(
            here, read_sync_state(here) | fetched
        )  # the copy has it, and loses it with the folder

    def _make_way(self, unit: str) -> None:
        """Clear the folder of a trial that was resumed elsewhere; put aside rows that only it has."""
        here = self.folder / unit
        path = here / "rows.jsonl"
        remote = self.store.read(f"{unit}/rows.jsonl")  # before the local file, which may be growing
        local = path.read_bytes() if path.exists() else b""
        if not here.exists() or local.startswith(remote[: remote.rfind(b"\n") + 1]):
            return
        if not remote.startswith(local[: local.rfind(b"\n") + 1]):
            aside = self.folder / ".superseded" / f"{unit.replace('/', '.')}.{time.time_ns()}"
            shutil.copytree(here, aside)
        for old in here.iterdir():
            if old.is_dir() and old.name != LOCKS:
                shutil.rmtree(old)
            elif old.is_file():
                old.unlink()

    def _listed(self, under: str = "") -> dict[str, fs.FileInfo]:
        """Return the name of each file of the copy, relative to the study -> what the store says of it."""
        found = self.store.files(under)
        return {
            name: info for name, info in found.items() if not any(p.startswith(".") for p in name.split("/"))
        }

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.uri} cannot be read ({short(error)})") from error
