"""A lease: one process at a time runs a study that is kept at a URI, on whichever machine.

A bucket has no locks, and pyarrow cannot create an object on the condition that it is absent. But a listing
shows every object written before it (S3, GCS and Azure promise it). So a process writes an object of its own
into ``.leases``, then lists. Of two that do so at once at least one sees the other and withdraws, perhaps
both do; never do both go on. Ages are differences of the store's own times.

A lease is renewed while its process lives. One that was not renewed for ``EXPIRES_S`` has expired and is
taken over, with a sentence. One case is not excluded: a process stalls for longer than that in the middle of
a copy, and then ends that copy. Before the next copy it looks at its lease, and stops.
"""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.json_files import JsonError, check_fields, parse_json
from pipeline.storage.remote import StorageError, short
from pipeline.storage.sync import LEASES, StudySync

RENEW_S = 15.0
EXPIRES_S = 120.0
"""Eight renewals that failed: a store may not answer for a minute while the process lives."""


@dataclass(frozen=True)
class _Other:
    """Another process' lease: its id, seconds since its last renewal, and what it says."""

    name: str
    silent_s: float
    host: str = "?"
    pid: int = 0
    life: str = ""

    def __str__(self) -> str:
        """Name the process."""
        return f"process {self.pid} on {self.host}"


class Lease:
    """Holds a study; a context manager that gives the ``StudySync`` with which the holder copies.

    Args:
        study_sync: of the study.
        tell: shows a sentence: about a store that does not answer, or does again.
        renew_s: seconds between two renewals.
        silent_s: seconds without one after which a lease has expired.

    Attributes:
        notes: sentences about expired leases that were taken over.
        lost: whether another process has taken this lease over; the main thread is then interrupted.
    """

    def __init__(
        self,
        study_sync: StudySync,
        tell: Callable[[str], None],
        renew_s: float = RENEW_S,
        silent_s: float = EXPIRES_S,
    ) -> None:
        host = socket.gethostname()
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.notes: list[str] = []
        self.lost = False
        self._study_sync, self._tell, self._renew_s, self._silent_s = study_sync, tell, renew_s, silent_s
        self._text = json.dumps({"host": host, "pid": os.getpid(), "life": _life(os.getpid())}).encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> StudySync:
        """Take the lease.

        Raises:
            StorageError: another process runs it, or the store does not answer.
        """
        try:
            self._write()
            living = [other for other in self._others() if not self._is_dead(other)]
            if living:
                self._study_sync.store.remove(self._path(self.name))
                raise StorageError(
                    f"{self._study_sync.uri}: {living[0]} runs this study (last sign of life "
                    f"{living[0].silent_s:.0f} s ago); wait for it, or end it and try again after "
                    f"{self._silent_s:.0f} s"
                )
            for dead in self._others():
                self._study_sync.store.remove(self._path(dead.name))
                self.notes.append(
                    f"taken over from {dead}, which ended without a word "
                    f"(last sign of life {dead.silent_s:.0f} s ago)"
                )
        except OSError as error:
            with suppress(OSError):  # or nobody else gets it until it has expired
                self._study_sync.store.remove(self._path(self.name))
            raise StorageError(f"{self._study_sync.uri} cannot be written ({short(error)})") from error
        self._thread.start()
        return StudySync(self._study_sync.uri, self._study_sync.folder, self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        self._over.set()
        self._thread.join()
        with suppress(OSError):  # then it is dead in two minutes by itself
            self._study_sync.store.remove(self._path(self.name))

    def _renew(self) -> None:
        latest, trouble = time.time(), False
        while not self._over.wait(self._renew_s):
            try:
                late = time.time() - latest > self._silent_s / 2
                if not self._study_sync.store.exists(self._path(self.name)) or (late and self._others()):
                    self.lost = True
                    _interrupt()
                    return
                self._write()
                if trouble:
                    self._tell(f"{self._study_sync.uri} answers again")
                latest, trouble = time.time(), False
            except OSError as error:
                if not trouble:
                    self._tell(
                        f"warning: {self._study_sync.uri} does not answer ({short(error)}); trials go on, "
                        "and what is new is copied once it does"
                    )
                trouble = True

    def _write(self) -> None:
        self._study_sync.store.write(self._path(self.name), self._text)

    def _others(self) -> list[_Other]:
        infos = {Path(info.path).stem: info for info in self._study_sync.store.files(LEASES).values()}
        if self.name not in infos:
            raise OSError("it does not list what was just written, so nobody can be kept from running it too")
        own = infos.pop(self.name).mtime
        found = []
        for name, info in infos.items():
            silent_s = (own - info.mtime).total_seconds()
            try:
                plain = parse_json(self._study_sync.store.read(self._path(name)), dict)
                plain |= {"name": name, "silent_s": silent_s}
                check_fields(_Other, plain)
                found.append(_Other(**plain))
            except FileNotFoundError:  # it has just been given back
                continue
            except JsonError:  # being written
                found.append(_Other(name, silent_s))
        return found

    def _is_dead(self, other: _Other) -> bool:
        """Return whether a lease's process is gone; one of this machine is looked up, so nobody waits."""
        here = other.life.rpartition(" ")[0] == _life(os.getpid()).rpartition(" ")[0]
        return other.silent_s > self._silent_s or (here and _life(other.pid) != other.life)

    @staticmethod
    def _path(name: str) -> str:
        return f"{LEASES}/{name}.json"


def _interrupt() -> None:
    """Stop the main thread as Ctrl-C does, or as `kill` does where Ctrl-C is ignored (background jobs)."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM if ignored else signal.SIGINT)


def _life(pid: int) -> str:
    """Name a process beyond its number: boot of the machine, namespace of processes, start; empty if gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if state == "Z" else f"{boot} {os.readlink('/proc/self/ns/pid')} {fields[18]}"
    except OSError:  # no such process, or no Linux
        return ""
