"""The list of broken frames survives a crash, and a spoilt one is refused."""

from pathlib import Path

import pytest

from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.data.sample import DataError


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    BrokenFrames(5, path).note("a", "cut short", 3)
    with path.open("a") as file:
        file.write('{"token": "b", "st')
    again = BrokenFrames(5, path)
    assert len(again) == 1
    again.note("c", "cut short", 4)
    assert len(BrokenFrames(5, path)) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", r"line 2: expected an object, got a list"),
        ("{", r"line 2: Expecting property name"),
        ('{"token": 3, "step": 1, "problem": "x"}', r"line 2\.token is 3, expected text"),
        ("[" * 200_000, r"line 2: nested too deep"),
        ('{"a":' * 100 + "1" + "}" * 100, r"line 2: nested too deep, expected 64 levels"),
    ],
)
def test_a_spoilt_line_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "broken.jsonl"
    BrokenFrames(5, path).note("a", "cut short", 3)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=rf"broken\.jsonl: not a list of broken frames \({reason}.*delete it"):
        BrokenFrames(5, path)
