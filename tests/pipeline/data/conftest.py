"""One small generated dataset for the tests of this folder; copied by those that damage it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.synthetic import generate

VERSION = "v1.0-mini"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated")
    generate(root, seed=3, frames_per_scene=3, scenes_per_split={"mini_train": 1, "mini_val": 1}, workers=1)
    return root


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    return root


Edit = Callable[[str, Callable[[list[dict[str, Any]]], None]], None]


@pytest.fixture
def edit(copied: Path) -> Edit:
    """Change a table of the copied dataset in place."""

    def change(table: str, how: Callable[[list[dict[str, Any]]], None]) -> None:
        path = copied / VERSION / f"{table}.json"
        records = json.loads(path.read_text())
        how(records)
        path.write_text(json.dumps(records))

    return change
