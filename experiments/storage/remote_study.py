"""A study that is kept at a URI as well: downloaded before it goes on, leased, copied at the end."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.storage.study_folder import STORAGE_FILE, StudyError, StudyFolder
from experiments.terminal import Terminal
from pipeline.json_files import read_text
from pipeline.storage.lease import Lease
from pipeline.storage.remote import StorageError
from pipeline.storage.sync import RETRY_LIMIT_S, StudySync

MAX_URI = 4096
"""Most bytes of the file that says where a study is kept."""


def study_sync_of(storage: str, folder: Path) -> StudySync | None:
    """Return the copy of a study; None if it is kept on disk only.

    Args:
        storage: URI under which studies are kept; empty: where this one was kept before.
        folder: of the study.
    """
    kept = folder / STORAGE_FILE
    if not storage:
        if not kept.exists():
            return None
        return StudySync(read_text(kept, MAX_URI).strip(), folder.resolve())
    study_sync = copy_at(storage, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(study_sync.uri + "\n", encoding="utf-8")
    return study_sync


def copy_at(storage: str, folder: Path) -> StudySync:
    """Return the copy of a study under a URI; nothing is written.

    Raises:
        StorageError: the text is no URI, or one that holds a password.
    """
    study_sync = StudySync(f"{storage.rstrip('/')}/{folder.name}", folder.resolve())
    study_sync.store.at("")
    return study_sync


def download_study(storage: str, folder: Path) -> None:
    """Download what is newer at a study's URI, to look at it.

    Raises:
        StorageError: the URI cannot be used or read.
    """
    study_sync = study_sync_of(storage, folder)
    if study_sync is not None:
        study_sync.download_study()


@contextmanager
def stored_study(storage: str, folder: StudyFolder, console: Terminal) -> Iterator[StudySync | None]:
    """Take the lease of a study, download what is newer at its URI, and copy what is new at the end.

    Args:
        storage: as ``study_sync_of`` takes it.
        folder: of the study.
        console: where notes are shown.

    Yields:
        The copy that trials write to; None if the study is kept on disk only.

    Raises:
        StorageError: the URI cannot be used, or the end of the study could not be copied.
        StudyError: another process has taken the study over.
    """

    def tell(text: str) -> None:
        console.print(text, style="yellow", highlight=False, soft_wrap=True)

    study_sync = study_sync_of(storage, folder.path)
    if study_sync is None:
        yield None
        return
    lease = Lease(study_sync, tell)
    with lease as held:
        for note in lease.notes:
            tell(note)
        number = held.download_study()
        if number:
            console.print(f"{number} files fetched from {held.uri}", highlight=False, soft_wrap=True)
        try:
            yield held
        except BaseException as error:
            if lease.lost:
                raise StudyError(
                    f"{held.uri}: another process has taken this study over, because this one gave no sign "
                    f"of life for minutes; what is done here is in {folder.path}"
                ) from error
            with suppress(StorageError):  # the error in hand says more
                held.upload_study()
            raise
        held.upload_study(RETRY_LIMIT_S)
        console.print(f"the study is copied to {held.uri}", highlight=False, soft_wrap=True)
