"""The commands that make something of a dataset, as typed."""

import pickle

import cv2
import pytest

from experiments.cli import main
from pipeline.data.augmentation.object_database import open_database

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
