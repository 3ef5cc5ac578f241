"""Deleting a key as text: what is left, character by character."""

import ast
from pathlib import Path

import pytest

from experiments.lint.finding import LintError
from experiments.lint.fix import remove
from pipeline.config.provenance import SourcePlace, read_source

CASES = {
    "in the middle": ("x = dict(a=1, flag=True, b=2)\n", "x = dict(a=1, b=2)\n"),
    "first": ("x = dict(flag=True, b=2)\n", "x = dict(b=2)\n"),
    "last": ("x = dict(a=1, flag=True)\n", "x = dict(a=1)\n"),
    "last, trailing comma": ("x = dict(a=1, flag=True,)\n", "x = dict(a=1, )\n"),
    "alone": ("x = dict(flag=True)\n", "x = dict()\n"),
    "dict display": ("x = {'a': 1, 'flag': True}\n", "x = {'a': 1}\n"),
    "a line of its own": (
        "x = dict(\n    a=1,\n    flag=True,\n    b=2,\n)\n",
        "x = dict(\n    a=1,\n    b=2,\n)\n",
    ),
    "its own last line": ("x = dict(\n    a=1,\n    flag=True\n)\n", "x = dict(\n    a=1,\n)\n"),
    "a comment behind it": (
        "x = dict(\n    a=1,\n    flag=True,  # for speed\n    b=2)\n",
        "x = dict(\n    a=1,\n    # for speed\n    b=2)\n",
    ),
    "a comment behind the bracket": ("x = [dict(a=1, flag=True)],  # why\n", "x = [dict(a=1)],  # why\n"),
    "over two lines": ("x = dict(a=1, flag=(\n    True), b=2)\n", "x = dict(a=1, b=2)\n"),
    "commas first": ("x = dict(a=1\n    , flag=True\n    , b=2)\n", "x = dict(a=1\n    \n    , b=2)\n"),
    "letters of two bytes": ("x = dict(ä='é', flag=True, ö=2)  # ü\n", "x = dict(ä='é', ö=2)  # ü\n"),
    "tabs": ("x = dict(\n\ta=1,\n\tflag=True,\n)\n", "x = dict(\n\ta=1,\n)\n"),
    "no line end": ("x = dict(a=1, flag=True)", "x = dict(a=1)"),
}


@pytest.mark.parametrize(("before", "after"), CASES.values(), ids=CASES)
def test_all_else_stays(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_bytes(before.encode())
    key: tuple[str | int, ...] = ("x", 0, "flag") if before.startswith("x = [") else ("x", "flag")
    if before.startswith("x = [") and before.rstrip().endswith("# why"):
        key = ("x", 0, 0, "flag")  # a list in a tuple of one
    place, exact = read_source(file).find(key)
    assert exact
    assert remove([place]) == [file]
    assert file.read_bytes().decode() == after
    ast.parse(after)


def test_two_in_one_file_and_one_named_twice(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("x = dict(flag=True, a=dict(flag=True, b=1))\n")
    source = read_source(file)
    one, two = source.find(("x", "flag"))[0], source.find(("x", "a", "flag"))[0]
    remove([one, two, one])
    assert file.read_text() == "x = dict(a=dict(b=1))\n"


def test_what_would_leave_no_python_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("x = dict(a=1)\n")
    with pytest.raises(LintError, match=r"cannot be mended as text .*; nothing was written"):
        remove([SourcePlace(file, 1, 5, (1, 10))])
    assert file.read_text() == "x = dict(a=1)\n"
    assert list(tmp_path.iterdir()) == [file]
