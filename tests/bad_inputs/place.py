"""Where bad inputs are made: small good things, each copied before it is spoilt."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Words = Sequence[str]
"""What is typed after ``biaswise``."""

CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"
VERSION = "v1.0-mini"
SPLIT = "mini_val"


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        file: what kind of file or word it is in.
        key: where in it.
        value: what is wrong there.
        make: makes it in a place; returns the command that meets it, or a function that does.
        sentence: what the user is told; ``…`` stands for what differs from place to place.
    """

    file: str
    key: str
    value: str
    make: "Callable[[Place], Words | Callable[[], Any]]"
    sentence: str


@dataclass(frozen=True)
class Place:
    """An empty folder, and good things to copy from: a dataset, its shards, an info file, a study."""

    tmp: Path
    good: Path
    root: Path
    environment: Callable[[str, str], None]

    def dataset(self) -> Path:
        """Return a copy of the good dataset."""
        return Path(shutil.copytree(self.good / "data", self.tmp / "data"))

    def shards(self) -> Path:
        """Return a copy of its shards."""
        return Path(shutil.copytree(self.good / "shards", self.tmp / "shards"))

    def study(self) -> Path:
        """Return a copy of a finished study of simulated rows."""
        return Path(shutil.copytree(self.root / "tests/golden/report", self.tmp / "runs/golden"))

    def table(self, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
        """Return a copy of the dataset with one table changed."""
        data = self.dataset()
        path = data / VERSION / f"{name}.json"
        records = json.loads(path.read_text())
        change(records)
        path.write_text(json.dumps(records))
        return data

    def config(self, text: str) -> str:
        """Write a config that inherits from the mini's and adds a text."""
        base = self.root / CONFIG
        path = self.tmp / "mine.py"
        path.write_text(f'_base_ = "{base}"\n{text}\n')
        return str(path)

    def written(self, name: str, text: str | bytes) -> str:
        """Write a file; return its path."""
        path = self.tmp / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)
