"""What fuzz tests share: values to put into files, and the bounds within which an answer must come.

Hypothesis changes values, keys and bytes. The examples are the same in every run.
"""

import copy
import json
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import is_user_error

LONGEST_S = 5.0
"""What a user waits at most for an answer about a small file."""

MEMORY = 2 * 2**30
"""Bytes that reading a small file may take at most."""

NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from([1e20, 1e308, -1e308, 2**63, 10**400])
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "\ud800", "../..", "[/red]", "\x1b[2J", "a" * 10_000, "none", "window:0"]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
BYTES = st.sampled_from(
    [b"", b"\xff", b"\x00", b"{", b"]", b"\n", b'"', b"1e999", b"NaN", b"\\ud800", b"[" * 3000]
)

Draw = Callable[[Any], Any]
"""Hypothesis's function that draws from a strategy."""


def few_and_many(number: int) -> pytest.MarkDecorator:
    """Run a test with few examples, and with ten times as many where slow tests run."""
    slow = pytest.param(10 * number, marks=pytest.mark.slow(seconds=30))
    return pytest.mark.parametrize("number", [number, slow], ids=["few", "many"])


def run(number: int, check: Callable[[Draw], object]) -> None:
    """Run a check, a function of hypothesis's ``draw``, this many times, each within the bounds."""

    def bound(data: Any) -> None:
        with bounds():
            check(data.draw)

    tried = settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=4 * LONGEST_S),  # by the clock, on a machine that others use too
        suppress_health_check=list(HealthCheck),
    )
    tried(given(st.data())(bound))()


@contextmanager
def bounds() -> Iterator[None]:
    """Fail if the block takes more than ``LONGEST_S`` of CPU time, or could take more than ``MEMORY``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    begun = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - begun < LONGEST_S


def changed(draw: Draw, node: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """Return a nested value with one to three of its values changed, added or removed at any depth."""
    holder = {"top": copy.deepcopy(node)}
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = holder
        key: Any = "top"
        while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 3)):
            parent = parent[key]
            key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        if parent is not holder and draw(st.integers(0, 4)) == 0:
            del parent[key]
        elif isinstance(parent[key], dict) and draw(st.booleans()):
            parent[key][draw(TEXTS)] = draw(values)
        else:
            parent[key] = draw(values)
    return holder["top"]


def spoilt(draw: Draw, data: bytes) -> bytes:
    """Return bytes with a piece replaced."""
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 40)))
    return data[:start] + draw(BYTES) + data[end:]


def content(draw: Draw, node: Any) -> bytes:
    """Return a changed file of JSON."""
    data = json.dumps(changed(draw, node) if draw(st.booleans()) else node).encode()
    return spoilt(draw, data) if draw(st.booleans()) else data


def answer(read: Callable[[], Any], longest: int = 100_000) -> Any:
    """Return what is read, or None if it is refused in a sentence; any other error is a failure.

    Args:
        read: reads it.
        longest: most characters of the sentence. A command shows the two ends of a longer one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a last line that was cut short, of numbers that are refused
        try:
            return read()
        except (ValueError, RuntimeError) as error:
            if not is_user_error(error):
                raise
            told = str(error)
    assert len(told) <= longest
    return None
