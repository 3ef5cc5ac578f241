"""Files at a URI (``s3://``, ``gs://``, any that pyarrow.fs reaches), by names relative to it.

Credentials are the environment's business (``AWS_ACCESS_KEY_ID`` and so on, or the machine's role): pyarrow
reads them, and a URI that holds some is refused.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from pipeline.redaction import find_secret, redact
from pipeline.storage.files import atomic_file

PIECE = 8 * 2**20
"""Bytes copied at a time."""


class StorageError(RuntimeError):
    """A URI that cannot be used, or that does not answer for long; the message is one sentence."""


@dataclass(frozen=True)
class RemoteStore:
    """A place at a URI. Errors of the store are OSErrors.

    Attributes:
        uri: may name a prefix.
    """

    uri: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the URI alone to another process: connections, and what they know, stay."""
        return RemoteStore, (self.uri,)

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        return _open_store(self.uri)

    @property
    def store(self) -> fs.FileSystem:
        """The file system of the URI."""
        return self._place[0]

    def at(self, path: str) -> str:
        """Return the store's name of a file.

        Raises:
            StorageError: the URI cannot be used.
        """
        return f"{self._place[1]}/{path}" if path else self._place[1]

    def files(self, under: str = "") -> dict[str, fs.FileInfo]:
        """Return the name of each file below a path -> what the store says of it."""
        start = len(self.at("")) + 1
        selector = fs.FileSelector(self.at(under), recursive=True, allow_not_found=True)
        found = self.store.get_file_info(selector)
        return {info.path[start:]: info for info in found if info.type == fs.FileType.File}

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        return bool(self.store.get_file_info(self.at(path)).type == fs.FileType.File)

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        with self.store.open_input_stream(self.at(path)) as file:
            return bytes(file.read())

    def write(self, path: str, content: bytes) -> None:
        """Write a file."""
        with self._writing(path) as file:
            file.write(content)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self.store.delete_file(self.at(path))

    @contextmanager
    def _writing(self, path: str) -> Iterator[Any]:
        if self.store.type_name == "local":  # a bucket has no folders that must be there
            self.store.create_dir(str(PurePosixPath(self.at(path)).parent), recursive=True)
        with self.store.open_output_stream(self.at(path)) as file:
            yield file

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file there."""
        with source.open("rb") as content, self._writing(path) as file:
            shutil.copyfileobj(content, file, PIECE)

    def download(self, path: str, target: Path) -> None:
        """Copy a file here, in one step."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.store.open_input_stream(self.at(path)) as content, atomic_file(target, fsync=True) as file:
            shutil.copyfileobj(content, file, PIECE)


def _open_store(uri: str) -> tuple[fs.FileSystem, str]:
    if kind := find_secret(uri):
        raise StorageError(
            f"--storage {redact(uri)} holds {kind}; leave it out and set AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or what your store's client reads, in the environment"
        )
    try:
        store, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"--storage {uri}: not a place that can be used ({short(error)}); expected s3://bucket/prefix, "
            f"gs://bucket/prefix or file:///folder"
        ) from error
    return store, path.rstrip("/")


def short(error: Exception) -> str:
    """Return an error of a store in one line, without secrets."""
    return redact(" ".join(str(error).split()))[:300]
