"""The layout: folders stay small enough to be read as a list, and `make` says what it does."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("operators", "pipeline", "experiments")
MOST_FILES = 13
"""Python files in one folder of production code, ``__init__.py`` counted."""


def crowded(root: Path) -> dict[str, int]:
    """Return folder -> number of Python files, where there are too many."""
    files = Counter(
        path.parent.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    )
    return {folder: number for folder, number in files.items() if number > MOST_FILES}


def test_no_folder_is_crowded() -> None:
    assert crowded(ROOT) == {}


def test_a_crowded_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline" / "data"
    folder.mkdir(parents=True)
    for number in range(MOST_FILES + 1):
        (folder / f"file_{number}.py").touch()
    assert crowded(tmp_path) == {"pipeline/data": MOST_FILES + 1}


def make(folder: Path, *words: str) -> str:
    """Run a target of a copy of the Makefile: the one here may find that its .venv is another checkout's."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements-nodeps.txt"):
        shutil.copy(ROOT / name, folder)
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the `make test` that runs this
    env = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(["make", *words], cwd=folder, check=True, capture_output=True, text=True, env=env)
    return done.stdout


def test_make_help_names_every_target(tmp_path: Path) -> None:
    listed = re.findall(r"^make ([a-z-]+) +\S", make(tmp_path, "help"), re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert sorted(listed) == sorted(phony[1].split())


def test_make_install_makes_the_environment_and_does_no_more(tmp_path: Path) -> None:
    steps = make(tmp_path, "--dry-run", "install").splitlines()
    assert steps[0].endswith("-m venv .venv")
    assert steps[-1] == f"echo {tmp_path} > .venv/.ready"
