"""Pickles of plain values and arrays come back as they were; anything else is refused, and nothing is run."""

import pickle
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.safe_pickle import unpickle
from pipeline.data.sample import DataError

SHARED = np.arange(6.0).reshape(2, 3)
GOOD: dict[Any, Any] = {
    "C": np.arange(12.0).reshape(3, 4),
    "F": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "big endian": np.arange(3, dtype=">i4"),
    "texts": np.array(["x", "abc"]),
    "bytes": np.array([b"x", b"abc"]),
    "bools": np.array([True, False]),
    "empty": np.zeros((0, 7), np.float32),
    "scalar": np.float64(3),
    "flag": np.bool_(True),
    "plain": [1, 2.5, None, True, "text", b"x", -5, 2**70, (1, 2), {"k": ()}],
    "sets": [{1, 2}, frozenset([3])],
    "bytearray": bytearray(b"abc"),
    "shared": [SHARED, SHARED],
    np.int64(7): "a key",
}


def read(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return unpickle(path)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(type(one) is type(other) and one == other)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    assert same(GOOD, read(tmp_path / "x.pkl", pickle.dumps(GOOD, protocol)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_names_of_numpy_1_are_known(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"a": np.arange(3)}, protocol)
    old = data.replace(b"numpy._core", b"numpy.core")
    if protocol > 2:  # a length goes before the name, and one before the frame
        old = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        old = old.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
        old = old[:3] + (len(old) - 11).to_bytes(8, "little") + old[11:]
    assert same({"a": np.arange(3)}, read(tmp_path / "x.pkl", old))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_any_change_of_some_bytes_is_read_or_refused(tmp_path: Path, protocol: int) -> None:
    """In memory that is bounded by the file, whatever it claims."""
    rng, data = random.Random(protocol), pickle.dumps(GOOD, protocol)
    tracemalloc.start()
    for _ in range(300):
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        with suppress(DataError):
            read(tmp_path / "x.pkl", bytes(spoilt))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
