"""Shards: key frames as Parquet, one row a frame, from disk or any store pyarrow can reach.

A folder of shards holds, per split, ``<split>.json`` (the manifest) and ``<split>-00000.parquet``
and so on. The manifest is written last and names every file with size and SHA-256, so a split
without one is unfinished. JPEGs are stored as they are, points bit for bit.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from pipeline.data.decode import assemble, load_points, read_bytes
from pipeline.data.loader import ALL, Reading
from pipeline.data.sample import CAMERAS, DataError, Sample
from pipeline.data.tables import FrameRecord, read_frames

FORMAT = 1
"""Version of the layout below."""

ROWS_PER_GROUP = 8
"""Frames read together: some 6 MB of the generated data, enough for an object store to be worth a request."""

ROWS_PER_FILE = 256
"""Frames per file: some 200 MB of the generated data."""

SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("scene", pa.string()),
        ("timestamp_us", pa.int64()),
        *((f"jpeg_{camera}", pa.binary()) for camera in CAMERAS),
        ("points", pa.binary()),  # float32 little endian, (N, 5), sweeps included
        ("cam2img", pa.list_(pa.float64(), 6 * 9)),
        ("lidar2cam", pa.list_(pa.float64(), 6 * 16)),
        ("lidar2ego", pa.list_(pa.float64(), 16)),
        ("ego2global", pa.list_(pa.float64(), 16)),
        ("boxes", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("num_points", pa.list_(pa.int64())),
    ]
)

Progress = Callable[[int, int], None]
"""Called with the frames that are done and all frames."""


def write_shards(
    root: Path, version: str, split: str, out: Path | str, progress: Progress | None = None
) -> None:
    """Write a split of a nuScenes dataset as shards.

    Args:
        root: dataset root in nuScenes layout.
        version: names the tables folder.
        split: split of the official devkit.
        out: folder or URI (``s3://...``) of the shards; may hold other splits already.
        progress: called as frames get done.

    Raises:
        DataError: if a file of the dataset is missing or broken, ``out`` holds this split already, or
            cannot be written. A split that was begun and not finished is written anew.
    """
    records = read_frames(Path(root), version, split)
    store, folder = _open_store(out)
    manifest_path = f"{folder}/{split}.json"
    if store.get_file_info(manifest_path).type != fs.FileType.NotFound:
        raise DataError(
            f"{manifest_path}: split {split!r} is there already; remove it or choose another folder"
        )
    files = []
    try:
        store.create_dir(folder, recursive=True)
        for start in range(0, len(records), ROWS_PER_FILE):
            name = f"{split}-{start // ROWS_PER_FILE:05d}.parquet"
            files.append(_write_file(store, folder, name, records[start : start + ROWS_PER_FILE]))
            if progress:
                progress(min(start + ROWS_PER_FILE, len(records)), len(records))
        manifest = {
            "format": FORMAT,
            "version": version,
            "split": split,
            "tokens": [record.token for record in records],
            "scenes": [record.scene for record in records],
            "files": files,
        }
        _put(store, manifest_path, json.dumps(manifest, indent=1).encode())
    except OSError as problem:
        raise DataError(
            f"{folder}: shards cannot be written ({problem}); free space or choose another"
        ) from problem


def _open_store(where: Path | str) -> tuple[fs.FileSystem, str]:
    """Return the file system and the path in it of a local folder or a URI."""
    text = str(where)
    try:
        if "://" in text:
            return fs.FileSystem.from_uri(text)
        return fs.LocalFileSystem(), str(Path(text).absolute())
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{text}: no store that pyarrow can open ({problem})") from problem


def _put(store: fs.FileSystem, path: str, data: bytes) -> None:
    """Write a file under another name and move it into place, so that it is whole or not there."""
    with store.open_output_stream(f"{path}.part") as stream:
        stream.write(data)
    store.move(f"{path}.part", path)


class _Digest:
    """A sink that passes bytes on and keeps their number and SHA-256; pyarrow writes to it as to a file."""

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
        """Do nothing: the stream is flushed when it is closed."""

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _write_file(
    store: fs.FileSystem, folder: str, name: str, records: Sequence[FrameRecord]
) -> dict[str, str | int]:
    """Write one Parquet file and return its entry in the manifest."""
    path = f"{folder}/{name}"
    with store.open_output_stream(f"{path}.part") as stream:
        sink = _Digest(stream)
        # JPEGs do not shrink and every value is unique; points shrink by a third.
        writer = pq.ParquetWriter(
            sink, SCHEMA, use_dictionary=False, write_statistics=False, compression={"points": "zstd"}
        )
        with writer:
            for start in range(0, len(records), ROWS_PER_GROUP):
                rows = [_row(record) for record in records[start : start + ROWS_PER_GROUP]]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA), row_group_size=ROWS_PER_GROUP)
    store.move(f"{path}.part", path)
    return {"name": name, "rows": len(records), "bytes": sink.size, "sha256": sink.sha256.hexdigest()}


def _row(record: FrameRecord) -> dict[str, Any]:
    """Read a frame's files, see that they decode, and return its row."""
    jpegs = [read_bytes(path) for path in record.image_paths]
    points = load_points(record)
    assemble(record, jpegs, points)
    return {
        "token": record.token,
        "scene": record.scene,
        "timestamp_us": record.timestamp_us,
        **{f"jpeg_{camera}": jpeg for camera, jpeg in zip(CAMERAS, jpegs, strict=True)},
        "points": points.astype("<f4").tobytes(),
        "cam2img": record.cam2img.ravel(),
        "lidar2cam": record.lidar2cam.ravel(),
        "lidar2ego": record.lidar2ego.ravel(),
        "ego2global": record.ego2global.ravel(),
        "boxes": record.boxes.ravel(),
        "labels": record.labels,
        "num_points": record.num_points,
    }


def read_manifest(folder: Path | str, split: str) -> dict[str, Any]:
    """Return the manifest of a split; DataError if it is missing, broken, or names files of other size."""
    store, path = _open_store(folder)
    where = f"{path}/{split}.json"
    try:
        with store.open_input_stream(where) as stream:
            manifest: dict[str, Any] = json.loads(stream.read())
        rows = sum(entry["rows"] for entry in manifest["files"])
        if manifest["format"] != FORMAT or not rows == len(manifest["tokens"]) == len(manifest["scenes"]):
            raise KeyError(f"format {manifest['format']} with {rows} rows")
    except OSError as problem:
        raise DataError(f"{where}: no finished shards of split {split!r} here ({problem})") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{where}: not a manifest of format {FORMAT} ({problem}); write the shards anew"
        ) from problem
    for entry in manifest["files"]:
        size = store.get_file_info(f"{path}/{entry['name']}").size
        if size != entry["bytes"]:
            raise DataError(
                f"{path}/{entry['name']}: expected {entry['bytes']} bytes, found {size or 'no file'}; "
                "the shards are incomplete, write them anew"
            )
    return manifest


def checksum(folder: Path | str, name: str) -> str:
    """Return the SHA-256 of one file of a folder of shards, in hexadecimal."""
    store, path = _open_store(folder)
    digest = hashlib.sha256()
    with store.open_input_stream(f"{path}/{name}") as stream:
        while block := stream.read(1 << 20):  # a mebibyte at a time
            digest.update(block)
    return digest.hexdigest()


class ShardSource:
    """The frames of a split in a folder of shards, by index; equal bit for bit to those of the files.

    Opens files on first use, each process its own, so it can be handed to loader processes.

    Args:
        folder: folder or URI of the shards.
        split: which of the splits in it.
        reading: what is read of a frame; the sweeps are in the shards whole, so none of their points
            can be removed any more.

    Raises:
        DataError: no whole shards of that split, or ``reading`` asks for ``remove_close``.
    """

    def __init__(self, folder: Path | str, split: str, reading: Reading = ALL) -> None:
        if reading.remove_close:
            raise DataError(
                f"{folder}: shards hold their sweeps in one cloud, remove_close=True cannot be met; read the "
                "dataset itself, or set remove_close=False in LoadPointsFromMultiSweeps as CMT has it"
            )
        manifest = read_manifest(folder, split)
        self.tokens: Sequence[str] = tuple(manifest["tokens"])
        self.scenes: Sequence[str] = tuple(manifest["scenes"])
        self.folder = folder
        self._reading = reading
        self._names = [entry["name"] for entry in manifest["files"]]
        self._first = np.cumsum([0] + [entry["rows"] for entry in manifest["files"]])
        self._files: dict[str, Any] = {}
        self._group: tuple[tuple[str, int], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_group": None}

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        place = range(len(self))[index]  # refuses what is out of range, understands negative
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        row = place - int(self._first[number])
        group = self._read_group(self._names[number], row // ROWS_PER_GROUP)
        return self._sample(group.slice(row % ROWS_PER_GROUP, 1).to_pylist()[0], self._names[number])

    @cached_property
    def labels(self) -> Sequence[frozenset[int]]:
        """Labels that occur in each frame."""
        found: list[frozenset[int]] = []
        for name in self._names:
            table = self._open(name).read(columns=["labels", "num_points"], use_threads=False)
            for labels, counts in zip(
                table["labels"].to_pylist(), table["num_points"].to_pylist(), strict=True
            ):
                pairs = zip(labels, counts, strict=True)
                found.append(frozenset(label for label, n in pairs if n >= self._reading.min_points))
        return found

    def records(self) -> Iterator[FrameRecord]:
        """Yield the records in order; their paths name the place in the shards and cannot be opened."""
        for index in range(len(self)):
            number = int(np.searchsorted(self._first, index, side="right")) - 1
            row = index - int(self._first[number])
            group = self._read_group(self._names[number], row // ROWS_PER_GROUP)
            yield _record(group.slice(row % ROWS_PER_GROUP, 1).to_pylist()[0], self._names[number])

    def _read_group(self, name: str, group: int) -> Any:
        """Return a row group as a table; the last one is kept, so reading in order reads each once."""
        if self._group is not None and self._group[0] == (name, group):
            return self._group[1]
        try:
            table = self._open(name).read_row_group(group, use_threads=False)
        except (OSError, pa.ArrowException) as problem:
            raise DataError(
                f"{self.folder}/{name}: cannot be read ({problem}); write the shards anew"
            ) from problem
        self._group = ((name, group), table)
        return table

    def _open(self, name: str) -> Any:
        if name not in self._files:
            store, path = _open_store(self.folder)
            self._files[name] = pq.ParquetFile(store.open_input_file(f"{path}/{name}"))
        return self._files[name]

    def _sample(self, row: dict[str, Any], name: str) -> Sample:
        points = np.frombuffer(row["points"], "<f4").astype(np.float32).reshape(-1, 5)
        lags = np.unique(points[:, 4])  # 0 is the key frame
        if len(lags) > self._reading.sweeps + 1:
            points = points[points[:, 4] <= lags[self._reading.sweeps]]
        jpegs = [row[f"jpeg_{camera}"] for camera in CAMERAS]
        return assemble(_record(row, name).with_points(self._reading.min_points), jpegs, points)


def _record(row: dict[str, Any], name: str) -> FrameRecord:
    def matrices(key: str, *shape: int) -> NDArray[np.float64]:
        return np.array(row[key], np.float64).reshape(shape)

    return FrameRecord(
        token=row["token"],
        scene=row["scene"],
        timestamp_us=row["timestamp_us"],
        image_paths=tuple(Path(name) / row["token"] / camera for camera in CAMERAS),
        cam2img=matrices("cam2img", 6, 3, 3),
        lidar2cam=matrices("lidar2cam", 6, 4, 4),
        lidar_path=Path(name) / row["token"] / "points",
        sweeps=(),
        lidar2ego=matrices("lidar2ego", 4, 4),
        ego2global=matrices("ego2global", 4, 4),
        boxes=np.array(row["boxes"], np.float32).reshape(-1, 9),
        labels=np.array(row["labels"], np.int64),
        num_points=np.array(row["num_points"], np.int64),
    )
