"""Fingerprint of a trial's data: twelve hex digits in every row, so that a mix of data can be detected."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.settings import DataSettings
from pipeline.data.safe_paths import read_bytes
from pipeline.data.source import is_remote, place_of


def fingerprint(data: DataSettings) -> str:
    """Return a digest of the annotations of a trial's training and validation data.

    It covers all tables of a root in nuScenes layout, the manifest of shards (which holds the digest of every
    file, images and points included), or an info file. The images and points beside tables are not read: a
    full nuScenes has 400 GB of them.

    Raises:
        DataError: a file that cannot be read, or shards without a readable manifest.
    """
    digest = hashlib.sha256()
    wanted = [*((root, data.train_split) for root in data.train), (data.val, data.val_split)]
    for root, split in wanted:
        for part in _contents(root, data.nuscenes_version, split):
            digest.update(part)
    return digest.hexdigest()[:12]


def _contents(root: str, version: str, split: str) -> Iterator[bytes]:
    place = Path(place_of(root))
    if place.suffix == ".pkl":
        yield read_bytes(place)
    elif not is_remote(root) and (place / version).is_dir():
        yield split.encode()
        for table in sorted((place / version).glob("*.json")):
            yield table.name.encode()
            yield read_bytes(table)
    else:
        from pipeline.data.formats.shard_manifest import read_manifest  # pyarrow only for those who shard

        yield json.dumps(read_manifest(place_of(root), split), sort_keys=True).encode()
