"""The commands that make something of a dataset, as typed."""

import pickle

import cv2
import pytest

from experiments.cli import main
from pipeline.data.augmentation.object_database import open_database

CHECKPOINT = "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"
CONFIG = "experiments/configs/cmt_aqr_pillar_mini_runner.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "mini"
    words = [
        "--out",
        str(path),
        "--seed",
        "2",
        "--frames",
        "1",
        "--scenes",
        "mini_train=1",
        "--processes",
        "1",
    ]
    assert main(["data", "synth", *words]) == 0
    return path


def test_objects_show_and_infos(root, tmp_path, capsys):
    assert main(["data", "objects", str(root), "--out", str(tmp_path / "objects")]) == 0
    assert len(open_database(tmp_path / "objects").labels) > 10
    assert main(["data", "infos", str(root), "--out", str(tmp_path / "infos.pkl")]) == 0
    assert len(pickle.loads((tmp_path / "infos.pkl").read_bytes())["data_list"]) == 1
    words = ["--config", CONFIG, "--out", str(tmp_path / "drawn"), "--frames", "3"]
    assert main(["data", "show", str(root), *words]) == 0
    (path,) = (tmp_path / "drawn").iterdir()
    assert cv2.imread(str(path)).shape[1] > 1000
    assert "boxes" in capsys.readouterr().out


def test_what_cannot_be_done_is_one_sentence(root, tmp_path, capsys):
    assert main(["data", "show", str(root), "--config", "experiments/configs/cmt_aqr_pillar_mini.py"]) == 2
    assert "has no train_dataloader" in capsys.readouterr().err
    assert main(["data", "infos", str(root), "--out", str(root)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["data", "objects", str(root / "nothing"), "--out", str(tmp_path)]) == 2
    assert "no such dataset" in capsys.readouterr().err


def test_every_command_takes_every_form_that_its_help_names(root, tmp_path):
    """Tables, an info file, shards; an info file of an info file, shards of an info file."""
    infos, shards = tmp_path / "infos.pkl", tmp_path / "shards"
    assert main(["data", "infos", str(root), "--out", str(root / "infos.pkl")]) == 0
    assert main(["data", "infos", str(root / "infos.pkl"), "--out", str(infos)]) == 0
    assert infos.read_bytes() == (root / "infos.pkl").read_bytes()
    for place, out in ((root, shards), (root / "infos.pkl", tmp_path / "more")):
        assert main(["data", "shard", str(place), "--split", "mini_train", "--out", str(out)]) == 0
    for form, place in {
        "tables": root,
        "infos": root / "infos.pkl",
        "shards": shards,
        "more": tmp_path / "more",
    }.items():
        assert main(["data", "check", str(place)]) == 0
        assert main(["data", "objects", str(place), "--out", str(tmp_path / f"objects_{form}")]) == 0
        assert main(["data", "show", str(place), "--out", str(tmp_path / f"drawn_{form}")]) == 0
    databases = [
        (tmp_path / f"objects_{form}/objects.bin").read_bytes() for form in ("tables", "infos", "shards")
    ]
    assert len(set(databases)) == 1
    assert main(["data", "infos", str(shards), "--out", str(tmp_path / "no.pkl")]) == 2


@pytest.mark.slow(seconds=60)
@pytest.mark.filterwarnings("ignore")  # the devkit's own
def test_evaluate_needs_no_other_split(tmp_path):
    data = str(tmp_path / "data")
    made = ["--frames", "1", "--scenes", "mini_val=1", "--processes", "1"]
    assert main(["data", "synth", "--out", data, "--seed", "2", *made]) == 0
    words = ["evaluate", CHECKPOINT, "--data", data, "--split", "mini_val", "--conditions", "clean"]
    assert main([*words, "--runs-dir", str(tmp_path / "runs")]) == 0
    (rows,) = (tmp_path / "runs").glob("evaluate/trials/*/rows.jsonl")
    assert '"NDS"' in rows.read_text()


def test_other_weights_at_the_same_path_are_another_evaluation(tmp_path, monkeypatch):
    """Rows of an evaluation that has run are kept, so a folder of the same name would show old scores."""
    folders = []
    monkeypatch.setattr("experiments.cli.trial._run_here", lambda settings, folder: folders.append(folder))
    monkeypatch.setattr("experiments.cli.trial._print_scores", lambda folder, console: None)
    monkeypatch.setattr("pipeline.data.formats.fingerprint.fingerprint", lambda data: "data")
    weights = tmp_path / "model.safetensors"
    for content in ("one", "two", "one"):
        weights.write_text(content)
        words = ["evaluate", str(weights), "--data", str(tmp_path), "--runs-dir", str(tmp_path)]
        assert main([*words, "--version", "v1.0-mini"]) == 0
    assert folders[0] == folders[2] != folders[1]
    assert all(folder.name.startswith("model_") for folder in folders)


@pytest.mark.parametrize(("option", "least"), [("frames", 1), ("epoch", 0), ("seed", 0)])
def test_numbers_of_pictures_that_cannot_be_are_refused(option, least, tmp_path, capsys):
    assert main(["data", "show", str(tmp_path), f"--{option}", "-3"]) == 2
    assert f"--{option} -3: expected {least} or more" in capsys.readouterr().err
