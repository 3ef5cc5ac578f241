"""Format of a folder of shards: manifest, schema, and access to local and remote folders.

Per split a folder of shards holds ``<split>.json`` (the manifest) and ``<split>-00000.parquet`` and so on,
with one row per frame. The manifest is written last and names every file with size and SHA-256, so a split
without a manifest is unfinished. JPEGs are stored unchanged.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from pipeline.data.sample import CAMERAS, DataError
from pipeline.data.sensors import show
from pipeline.json_files import MAX_BYTES, parse_json

FORMAT = 3
"""Version of this format. Version 2 had no ``valid`` and no missing cameras, version 1 no statistics."""

POINTS: Mapping[str, str] = {"float32": "<f4", "float16": "<f2"}
"""Dtypes of stored points, little endian: float32 is exact, float16 takes half the bytes."""

SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("scene", pa.string()),
        ("timestamp_us", pa.int64()),
        ("num_boxes", pa.int64()),
        ("num_cloud_points", pa.int64()),
        *((f"jpeg_{camera}", pa.binary()) for camera in CAMERAS),  # null: the camera was missing
        ("points", pa.binary()),  # (N, 5) of the manifest's type, sweeps included
        ("cam2img", pa.list_(pa.float64(), 6 * 9)),
        ("lidar2cam", pa.list_(pa.float64(), 6 * 16)),
        ("lidar2ego", pa.list_(pa.float64(), 16)),
        ("ego2global", pa.list_(pa.float64(), 16)),
        ("boxes", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("num_points", pa.list_(pa.int64())),
        ("valid", pa.list_(pa.bool_())),
    ]
)

STATISTICS = ("scene", "timestamp_us", "num_boxes", "num_cloud_points")
"""Columns with minimum and maximum per row group. They select frames without reading the group."""

_NAME = re.compile(r"[\w-]+-\d{5,}\.parquet")
"""Allowed file names, because a foreign manifest must not lead out of its folder."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_SPLIT = re.compile(r"\w[\w-]*")


def open_store(where: Path | str) -> tuple[fs.FileSystem, str]:
    """Return the file system and the path in it of a local folder or a URI."""
    text = str(where)
    try:
        if "://" in text:
            return fs.FileSystem.from_uri(text)
        return fs.LocalFileSystem(), str(Path(text).absolute())
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{text}: no store that pyarrow can open ({problem})") from problem


def put(store: fs.FileSystem, path: str, data: bytes) -> None:
    """Write a file atomically: under another name, and then moved into place."""
    part = part_name(path)
    with store.open_output_stream(part) as stream:
        stream.write(data)
    store.move(part, path)


def part_name(path: str) -> str:
    """Return a temporary name for a file that is being written; every call gives another name."""
    return f"{path}.{uuid4().hex[:8]}.part"


def remove(store: fs.FileSystem, path: str) -> None:
    """Remove a file if it exists."""
    with suppress(FileNotFoundError):
        store.delete_file(path)


def read_manifest(folder: Path | str, split: str) -> dict[str, Any]:
    """Return the manifest of a split; DataError if it is missing or broken, or a file has another size."""
    if not _SPLIT.fullmatch(split):
        raise DataError(f"{split!r} is no name of a split; expected letters, digits and _, e.g. mini_train")
    store, path = open_store(folder)
    where = f"{path}/{split}.json"
    try:
        if store.get_file_info(where).type == fs.FileType.Unknown:  # a pipe would be waited for
            raise ValueError("it is no regular file")
        with store.open_input_stream(where) as stream:
            manifest: dict[str, Any] = parse_json(stream.read(MAX_BYTES), dict)
        _check(manifest, split)
    except OSError as problem:
        raise DataError(f"{where}: no finished shards of split {split!r} here ({problem})") from problem
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as problem:
        raise DataError(
            f"{where}: not a manifest of format {FORMAT} ({problem}); write the shards anew"
        ) from problem
    for entry in manifest["files"]:
        check_file(store, path, entry)
    return manifest


def _check(manifest: Mapping[str, Any], split: str) -> None:
    """Raise ValueError, TypeError or KeyError if a manifest has another format or contradicts itself."""
    for key, expected in (("format", FORMAT), ("split", split)):
        if manifest[key] != expected:
            raise ValueError(f"its {key} is {show(manifest[key])}")
    if manifest["points"] not in POINTS:
        raise ValueError(f"its points are {show(manifest['points'])}, expected {' or '.join(POINTS)}")
    for entry in manifest["files"]:
        _check_entry(entry)
    rows = sum(entry["rows"] for entry in manifest["files"])
    if not rows == len(manifest["tokens"]) == len(manifest["scenes"]):
        raise ValueError(f"it has {rows} rows and {len(manifest['tokens'])} tokens")
    if not all(isinstance(text, str) for text in (*manifest["tokens"], *manifest["scenes"])):
        raise ValueError("its tokens and scenes are not all texts")
    _refuse_twice("the file", [str(entry["name"]) for entry in manifest["files"]])
    _refuse_twice("the frame", manifest["tokens"])


def _check_entry(entry: Mapping[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError if the entry of a file contradicts itself."""
    name = show(entry["name"])
    numbers = [entry["rows"], entry["bytes"], *entry["groups"]]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"{name} has rows, bytes or groups that are not above 0")
    if sum(entry["groups"]) != entry["rows"]:
        raise ValueError(f"{name} has {entry['rows']} rows in groups of {show(entry['groups'])}")
    if not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"{name} has the checksum {show(entry['sha256'])}")


def _refuse_twice(what: str, values: Sequence[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"it lists {what} {show(twice[0])} twice")


def check_file(store: fs.FileSystem, path: str, entry: Mapping[str, Any]) -> None:
    """Raise DataError if a file of a manifest has another kind of name, is a link, or has another size."""
    name = entry["name"]
    if not _NAME.fullmatch(str(name)):
        raise DataError(
            f"{path}: its manifest names the file {show(name)}; expected a name such as "
            "mini_train-00000.parquet, in this folder; the manifest is not ours, do not use it"
        )
    info = store.get_file_info(f"{path}/{name}")
    if isinstance(store, fs.LocalFileSystem) and Path(f"{path}/{name}").is_symlink():
        raise DataError(f"{path}/{name}: is a link, and shards are read from their folder; copy it there")
    if info.size != entry["bytes"]:
        raise DataError(
            f"{path}/{name}: expected {entry['bytes']} bytes, found {info.size or 'no file'}; "
            "the shards are incomplete, write them anew"
        )


def checksum(folder: Path | str, name: str) -> str:
    """Return the SHA-256 of a file in a folder of shards, in hexadecimal."""
    store, path = open_store(folder)
    digest = hashlib.sha256()
    with store.open_input_stream(f"{path}/{name}") as stream:
        while block := stream.read(1 << 20):  # a mebibyte at a time
            digest.update(block)
    return digest.hexdigest()
