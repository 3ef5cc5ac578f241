"""Writes frames as shards. Each file is a separate task, and finished files are kept.

Until the manifest is written, each file has an entry beside it with its checksum and the digest of its
inputs. A writer that starts again after a kill verifies the entries, and writes the missing files.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.records import read_records
from pipeline.data.formats.shard_manifest import (
    FORMAT,
    POINTS,
    SCHEMA,
    STATISTICS,
    check_file,
    checksum,
    open_store,
    part_name,
    put,
    remove,
)
from pipeline.data.formats.shard_schema import to_row
from pipeline.data.sample import DataError
from pipeline.json_files import parse_json

GROUP_BYTES = 4 * 2**20
"""A row group ends when it has this size. It is enough for one request to an object store, and less than one
full-size frame with ten sweeps (6 MB), so that a random read of a frame reads no other frame."""

ROWS_PER_FILE = 64
"""Frames per file: 30 MB of generated data, 400 MB at full size. After a kill one file is written again."""

Entry = dict[str, Any]
"""A file in the manifest: name, rows, groups (number of frames in each row group), bytes, sha256."""

Progress = Callable[[int, int], None]
"""Called with the number of finished frames and the number of all frames."""


@dataclass(frozen=True)
class Part:
    """One file to be written.

    Attributes:
        out: folder or URI of the shards.
        name: name of the file.
        records: its frames.
        points: dtype of stored points, key of ``POINTS``.
        missing_cameras: ``refuse``, or ``black`` to store a frame without one of its images.
    """

    out: str
    name: str
    records: tuple[FrameRecord, ...]
    points: str
    missing_cameras: str = "refuse"


Run = Callable[[Sequence[Part]], Iterable[Entry]]
"""Writes parts, in any way and order, and yields the entry of each when it is finished."""


def one_by_one(parts: Sequence[Part]) -> Iterator[Entry]:
    """Write parts in this process."""
    return map(write_part, parts)


def write_shards(
    root: Path,
    version: str,
    split: str,
    out: Path | str,
    progress: Progress | None = None,
    points: str = "float32",
    run: Run = one_by_one,
    missing_cameras: str = "refuse",
) -> None:
    """Write a split of a dataset as shards. Files that an earlier call finished are kept.

    Args:
        root: dataset root in nuScenes layout, or an info file.
        version: name of the tables folder.
        split: split of the official devkit.
        out: folder or URI (``s3://...``) of the shards; may hold other splits.
        progress: called when frames are finished.
        points: ``float32`` is exact; ``float16`` takes half the bytes (docs/data.md has the cost).
        run: writes the parts.
        missing_cameras: ``refuse`` a frame without one of its images, or ``black`` to store it without.

    Raises:
        DataError: a file of the dataset is missing or broken, ``out`` holds this split already, or ``out``
            cannot be written.
    """
    if points not in POINTS:
        raise DataError(f"points {points!r}; expected {' or '.join(POINTS)}")
    records = read_records(root, version, split)
    store, folder = open_store(out)
    manifest_path = f"{folder}/{split}.json"
    if store.get_file_info(manifest_path).type != fs.FileType.NotFound:
        raise DataError(
            f"{manifest_path}: split {split!r} is there already; remove it or choose another folder"
        )
    names = [f"{split}-{number:05d}.parquet" for number in range(-(-len(records) // ROWS_PER_FILE))]
    cut = [tuple(records[i * ROWS_PER_FILE : (i + 1) * ROWS_PER_FILE]) for i in range(len(names))]
    parts = [
        Part(str(out), name, chosen, points, missing_cameras) for name, chosen in zip(names, cut, strict=True)
    ]
    try:
        store.create_dir(folder, recursive=True)
        _clear(store, folder, split, names)
        done = 0
        entries = []
        for entry in run(parts):
            check_file(store, folder, entry)  # another machine may have written to a folder of its own
            entries.append(entry)
            done += entry["rows"]
            if progress:
                progress(done, len(records))
        put(store, manifest_path, _manifest(version, split, points, records, entries))
        for name in names:
            remove(store, f"{folder}/{name}.entry")
    except OSError as problem:
        raise DataError(
            f"{folder}: shards cannot be written ({problem}); free space or choose another"
        ) from problem


def _manifest(
    version: str, split: str, points: str, records: Sequence[FrameRecord], entries: list[Entry]
) -> bytes:
    manifest = {
        "format": FORMAT,
        "version": version,
        "split": split,
        "points": points,
        "tokens": [record.token for record in records],
        "scenes": [record.scene for record in records],
        "files": sorted(entries, key=lambda entry: str(entry["name"])),
    }
    return json.dumps(manifest, indent=1).encode()


def _clear(store: fs.FileSystem, folder: str, split: str, names: Sequence[str]) -> None:
    """Remove partial files of a killed writer, and files that do not belong to the split any more."""
    kept = {f"{name}{ending}" for name in names for ending in ("", ".entry")}
    for info in store.get_file_info(fs.FileSelector(folder)):
        ours = info.base_name.startswith((f"{split}-", f"{split}.json."))
        if ours and info.base_name not in kept and info.base_name.endswith((".part", ".parquet", ".entry")):
            store.delete_file(info.path)


def write_part(part: Part) -> Entry:
    """Write one file, unless a complete one with the same frames exists, and return its entry."""
    store, folder = open_store(part.out)
    digest = _digest(part)
    entry = _finished(store, folder, part, digest)
    if entry is None:
        path = f"{folder}/{part.name}"
        entry = _write(store, path, part)
        put(store, f"{path}.entry", json.dumps({**entry, "of": digest}).encode())
    return entry


def _finished(store: fs.FileSystem, folder: str, part: Part, digest: str) -> Entry | None:
    """Return the entry of a file that is complete and made of these frames; else None."""
    path = f"{folder}/{part.name}"
    try:
        with store.open_input_stream(f"{path}.entry") as stream:
            entry: Entry = parse_json(stream.read(), dict)
        same = entry.pop("of") == digest and store.get_file_info(path).size == entry["bytes"]
        return entry if same and checksum(part.out, part.name) == entry["sha256"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _digest(part: Part) -> str:
    """Return a digest of all that decides a file's content; of input files, size and time of change."""
    digest = hashlib.sha256(f"{FORMAT} {GROUP_BYTES} {part.points} {part.missing_cameras}".encode())
    for record in part.records:
        digest.update(f"{record.token} {record.scene} {record.timestamp_us}".encode())
        for matrix in (record.cam2img, record.lidar2cam, record.lidar2ego, record.ego2global):
            digest.update(matrix.tobytes())
        for sweep in record.sweeps:
            digest.update(f"{sweep.lag_s} {sweep.columns}".encode() + sweep.lidar2sensor.tobytes())
        for column in (record.boxes, record.labels, record.num_points, record.valid):
            digest.update(column.tobytes())
        digest.update(str(record.columns).encode())
        for path in (*record.image_paths, record.lidar_path, *(sweep.path for sweep in record.sweeps)):
            digest.update(_stamp(path).encode())
    return digest.hexdigest()


def _stamp(path: Path | None) -> str:
    """Return what changes with a file. One that is not there is refused, if at all, when it is read."""
    try:
        status = path.stat() if path is not None else None
    except FileNotFoundError:
        status = None
    except OSError as problem:
        raise DataError(
            f"{str(path)[:200]}: cannot be read ({problem.strerror}); the dataset is incomplete"
        ) from problem
    return f"{path} {status.st_size} {status.st_mtime_ns}" if status else f"{path} missing"


class _Sink:
    """A file object for pyarrow that passes bytes on, and computes their number and SHA-256."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        self.stream.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing, because the stream is flushed when it is closed."""

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _write(store: fs.FileSystem, path: str, part: Part) -> Entry:
    """Write one Parquet file atomically, and return its entry."""
    unfinished = part_name(path)
    groups = []
    try:
        with store.open_output_stream(unfinished) as stream:
            sink = _Sink(stream)
            # JPEGs do not compress, and all values are different. LZ4 saves 29 % of the points and unpacks a
            # scan in 0.2 ms. zstd saves 39 % and takes 1 to 2 ms, a fifth of all work on a frame.
            writer = pq.ParquetWriter(
                sink,
                SCHEMA,
                use_dictionary=False,
                write_statistics=list(STATISTICS),
                compression={"points": "lz4"},
            )
            with writer:
                for rows in _groups(part):
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA), row_group_size=len(rows))
                    groups.append(len(rows))
        store.move(unfinished, path)
    except BaseException:
        remove(store, unfinished)
        raise
    return {
        "name": part.name,
        "rows": len(part.records),
        "groups": groups,
        "bytes": sink.size,
        "sha256": sink.sha256.hexdigest(),
    }


def _groups(part: Part) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each row group."""
    rows: list[dict[str, Any]] = []
    size = 0
    for record in part.records:
        rows.append(to_row(record, part.points, part.missing_cameras))
        size += sum(len(value) for value in rows[-1].values() if isinstance(value, bytes))
        if size >= GROUP_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows
