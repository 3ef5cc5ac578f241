"""A start that is refused, because another process runs the study, changes no file of it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.cli import main
from experiments.recipes.mini import smoke
from experiments.storage.study_folder import StudyError, StudyFolder
from experiments.study.run_study import RunOptions, run_study


@pytest.fixture
def folder(tmp_path):
    """A study that has begun and whose first trial has not."""
    folder = StudyFolder(tmp_path / "smoke")
    folder.claim(smoke(), {})
    return folder


def content(folder):
    files = (path for path in folder.path.rglob("*") if ".locks" not in path.parts)
    return {path: path.read_bytes() if path.is_file() else b"" for path in files}


def test_another_recipe(folder, tmp_path):
    before = content(folder)
    other = replace(smoke(), trials=tuple(replace(one, num_workers=2, seed=5) for one in smoke().trials))
    options = RunOptions(folder.path.parent, storage=(tmp_path / "elsewhere").as_uri(), tracking=False)
    with folder.lock(), pytest.raises(StudyError, match="another process runs this study; wait for it"):
        run_study(other, options, Console(file=io.StringIO()))
    assert content(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        ["study", "run", "smoke", "--concurrent", "1"],
        ["study", "time", "smoke", "--seconds", "1", "--set", "train.steps=4"],
        ["train", "smoke", "--local", "--seed", "0"],
        ["train", "smoke", "--local", "--steps", "3"],
    ],
    ids=" ".join,
)
def test_a_command(words, folder, monkeypatch):
    monkeypatch.setattr("experiments.study.preflight.datasets.make_datasets", lambda datasets, console: None)
    before = content(folder)
    with folder.lock():
        assert main([*words, "--runs-dir", str(folder.path.parent)]) == 2
    assert content(folder) == before
