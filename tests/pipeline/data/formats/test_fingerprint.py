"""Fingerprint: other annotations, another name."""

import re
import shutil
from pathlib import Path

import pytest

from pipeline.config.settings import DataSettings
from pipeline.data.formats.fingerprint import fingerprint
from pipeline.data.formats.shard_writer import write_shards


@pytest.fixture
def copy(small_dataset: Path, tmp_path: Path) -> Path:
    """The tables alone: nothing else is read."""
    shutil.copytree(small_dataset / "v1.0-mini", tmp_path / "copy" / "v1.0-mini")
    return tmp_path / "copy"


def of(train: Path, val: Path) -> str:
    return fingerprint(DataSettings(train=(str(train),), val=str(val)))


def test_a_copy_has_the_same_one(small_dataset: Path, copy: Path) -> None:
    assert of(small_dataset, small_dataset) == of(copy, copy)


def test_a_changed_annotation_shows(small_dataset: Path, copy: Path) -> None:
    table = copy / "v1.0-mini" / "sample_annotation.json"
    table.write_bytes(table.read_bytes().replace(b"1", b"2", 1))
    assert len({of(small_dataset, small_dataset), of(copy, small_dataset), of(small_dataset, copy)}) == 3


def test_shards_are_named_by_what_their_manifest_says(small_dataset: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shards(small_dataset, "v1.0-mini", "mini_train", shards)
    before = of(shards, small_dataset)
    assert before == of(shards, small_dataset)
    manifest = shards / "mini_train.json"
    manifest.write_text(re.sub('"sha256": ".', '"sha256": "f', manifest.read_text(), count=1))
    assert of(shards, small_dataset) != before
