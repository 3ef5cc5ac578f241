"""Any change of a value in an info file, a table or a manifest is read, or answered in one sentence."""

import copy
import json
import pickle
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.formats.infos.reader import read_infos
from pipeline.data.formats.infos.writer import write_infos
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.shard_writer import write_shards
from pipeline.data.formats.shards import ShardSource
from pipeline.data.sample import DataError
from tests.pipeline.data.formats.spoilt import converter_infos

VERSION, SPLIT = "v1.0-mini", "mini_val"
LIMIT_S = 5.0
"""What a user waits at most for an answer about a small dataset, in CPU time."""

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**9, 10**30, 1.5, float("nan"), float("inf"), -1e300, "", "x", "../../etc/passwd",
    "\ud800", "a" * 5000, [], [[]], [1, 2], {}, {"a": 1}, [[0.0] * 4] * 4, [None] * 3,
)  # fmt: skip


def places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of a nested value."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(min(len(value), 8)))
    for key in keys:
        yield value, key
        if depth < 6:
            yield from places(value[key], depth + 1)


def mutate(content: Any, rng: random.Random) -> None:
    """Replace, remove or double something, anywhere."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        container, key = rng.choice(list(places(content)))
        what = rng.random()
        if what < 0.75:
            container[key] = copy.deepcopy(rng.choice(JUNK))
        elif isinstance(container, dict) or len(container) > 1:
            del container[key]


def answered(read: Callable[[], object]) -> None:
    """Read something: it works, or it is refused in one sentence, soon."""
    begun = time.process_time()
    try:
        read()
    except DataError as refused:
        told = str(refused)
        if "\n" in told or len(told) > 1200:
            raise AssertionError(f"no sentence: {told[:2000]}") from refused
    assert time.process_time() - begun < LIMIT_S


@pytest.fixture(scope="module")
def forms(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("forms")
    write_infos(read_frames(dataset, VERSION, SPLIT), out / "new.pkl", VERSION)
    old = converter_infos(dataset, out / "old.pkl")
    for info in old["infos"]:
        info["sweeps"] = []
    write_shards(dataset, VERSION, SPLIT, out / "shards")
    return {"1.1": pickle.loads((out / "new.pkl").read_bytes()), "1.0": old, "shards": out / "shards"}


@pytest.mark.filterwarnings("ignore")  # of numpy, about numbers that are refused
@pytest.mark.parametrize("form", ["1.0", "1.1"])
@pytest.mark.parametrize("seed", range(40))
def test_info_files(forms: dict[str, Any], dataset: Path, tmp_path: Path, form: str, seed: int) -> None:
    content = copy.deepcopy(forms[form])
    mutate(content, random.Random(seed))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    answered(lambda: read_infos(tmp_path / "x.pkl", dataset))


@pytest.mark.parametrize("seed", [*range(40), 245, 281, 348])  # the last: long names in the message
def test_manifests(forms: dict[str, Any], tmp_path: Path, seed: int) -> None:
    for path in forms["shards"].iterdir():
        (tmp_path / path.name).hardlink_to(path)
    content = json.loads((forms["shards"] / f"{SPLIT}.json").read_text())
    mutate(content, random.Random(seed))
    (tmp_path / f"{SPLIT}.json").unlink()
    (tmp_path / f"{SPLIT}.json").write_text(json.dumps(content))
    answered(lambda: ShardSource(tmp_path, SPLIT)[0])


TABLES = (
    "scene", "sample", "sample_data", "sample_annotation", "calibrated_sensor", "ego_pose", "category",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("seed", range(6))
def test_tables(dataset: Path, tmp_path: Path, name: str, seed: int) -> None:
    (tmp_path / VERSION).mkdir()
    for path in (dataset / VERSION).iterdir():
        (tmp_path / VERSION / path.name).symlink_to(path)
    for folder in ("samples", "maps"):
        (tmp_path / folder).symlink_to(dataset / folder)
    path = tmp_path / VERSION / f"{name}.json"
    records = json.loads(path.read_text())
    mutate(records, random.Random(seed))
    path.unlink()
    path.write_text(json.dumps(records))
    answered(lambda: [read_frames(tmp_path, VERSION, split) for split in ("mini_train", SPLIT)])
