"""The layout: folders stay small enough to be read as a list."""

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
