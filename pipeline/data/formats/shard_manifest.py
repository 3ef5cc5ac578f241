"""Format of a folder of shards: manifest, schema, and access to local and remote folders.

Per split a folder of shards holds ``<split>.json`` (the manifest) and ``<split>-00000.parquet`` and so on,
with one row per frame. The manifest is written last and names every file with size and SHA-256, so a split
without a manifest is unfinished. JPEGs are stored unchanged.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from pipeline.data.sample import CAMERAS, DataError

FORMAT = 2
"""Version of this format. Version 1 had row groups of eight frames, no statistics and only float32 points."""

POINTS: Mapping[str, str] = {"float32": "<f4", "float16": "<f2"}
"""Dtypes of stored points, little endian: float32 is exact, float16 takes half the bytes."""

SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("scene", pa.string()),
        ("timestamp_us", pa.int64()),
        ("num_boxes", pa.int64()),
        ("num_cloud_points", pa.int64()),
        *((f"jpeg_{camera}", pa.binary()) for camera in CAMERAS),
        ("points", pa.binary()),  # (N, 5) of the manifest's type, sweeps included
        ("cam2img", pa.list_(pa.float64(), 6 * 9)),
        ("lidar2cam", pa.list_(pa.float64(), 6 * 16)),
        ("lidar2ego", pa.list_(pa.float64(), 16)),
        ("ego2global", pa.list_(pa.float64(), 16)),
        ("boxes", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("num_points", pa.list_(pa.int64())),
    ]
)

STATISTICS = ("scene", "timestamp_us", "num_boxes", "num_cloud_points")
"""Columns with minimum and maximum per row group. They select frames without reading the group."""

_NAME = re.compile(r"[\w-]+-\d{5,}\.parquet")
"""Allowed file names, because a foreign manifest must not lead out of its folder."""

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
        with store.open_input_stream(where) as stream:
            manifest: dict[str, Any] = json.loads(stream.read())
        _check(manifest)
    except OSError as problem:
        raise DataError(f"{where}: no finished shards of split {split!r} here ({problem})") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{where}: not a manifest of format {FORMAT} ({problem}); write the shards anew"
        ) from problem
    for entry in manifest["files"]:
        check_file(store, path, entry)
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError if a manifest has another format or contradicts itself."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}")
    if manifest["points"] not in POINTS:
        raise ValueError(f"its points are {manifest['points']!r}, expected {' or '.join(POINTS)}")
    rows = sum(entry["rows"] for entry in manifest["files"])
    if not rows == len(manifest["tokens"]) == len(manifest["scenes"]):
        raise ValueError(f"it has {rows} rows and {len(manifest['tokens'])} tokens")
    for entry in manifest["files"]:
        if sum(entry["groups"]) != entry["rows"] or min(entry["groups"]) < 1:
            raise ValueError(f"{entry['name']} has {entry['rows']} rows in groups of {entry['groups']}")


def check_file(store: fs.FileSystem, path: str, entry: Mapping[str, Any]) -> None:
    """Raise DataError if a file of a manifest has another kind of name, is a link, or has another size."""
    name = entry["name"]
    if not _NAME.fullmatch(str(name)):
        raise DataError(
            f"{path}: its manifest names the file {name!r}; expected a name such as "
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
