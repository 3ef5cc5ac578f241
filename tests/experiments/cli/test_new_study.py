"""``biaswise study new``: the file that it writes is a study, and what it says of it is that study's."""

import json

import pytest
import torch

from experiments.cli import main
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.mini import MINI_CHECKPOINT, MINI_CONFIG
from experiments.recipes.registry import recipe
from pipeline.config.plan import Choice
from pipeline.storage.paths import ROOT

R50 = "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"
PLAIN = "experiments/configs/cmt_voxel0100_r50_800x320_cbgs.py"
OLD = ROOT / "tests/experiments/lint/previous/fusion.py"
EXPECTED = "expected one of global, window, gaussian, or window:N or gaussian:N for a window of N cells, 1 or"
VOV = "experiments/configs/cmt_voxel0075_vov_1600x640_cbgs.py"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's own, with the tables of a dataset as far as they are counted."""
    for version, scenes in (
        ("v1.0-mini", {"scene-0061": 20, "scene-0553": 20, "scene-0103": 20}),
        ("v1.0-trainval", {"scene-0001": 40, "scene-0003": 38}),
    ):
        (tmp_path / f"of-{version}" / version).mkdir(parents=True)
        table = [{"name": name, "nbr_samples": number} for name, number in scenes.items()]
        (tmp_path / f"of-{version}" / version / "scene.json").write_text(json.dumps(table))
        (tmp_path / f"of-{version}" / version / "sample.json").write_text("[]")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "cmt.pth")
    (tmp_path / "no_weights.pth").write_text("import torch\n")
    (tmp_path / "folder.pth").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words, file="my_study.py", config=MINI_CONFIG, data="of-v1.0-mini", init=MINI_CHECKPOINT, gpus="0"):
    given = ["--config", config, "--data", data, "--init", init, "--gpus", gpus]
    return main(["study", "new", file, *given, *words])


def test_the_file_is_a_study_of_the_users_config_data_and_checkpoint(here, capsys):
    assert new("--treatment", "window:5") == 0
    said = capsys.readouterr().out
    made = recipe("my_study.py")
    first = made.trials[0]
    assert (first.config, first.init_checkpoint, first.data.train) == (
        MINI_CONFIG,
        MINI_CHECKPOINT,
        ("of-v1.0-mini",),
    )
    assert (first.train.steps, first.data.nuscenes_version) == (20, "v1.0-mini"), "an epoch of 40 frames"
    assert first.overrides == (KEPT_STATISTICS,)
    assert first.plan["decoder.0.cross"] == Choice("none", "gathered")
    assert made.rule.treatments == ("window:5",)
    assert (len(made.trials), made.design.kind, made.confirmation_seeds) == (32, "full", (100, 101))
    assert "the bias varies at decoder.0.cross, decoder.1.cross, decoder.2.cross" in said
    assert "Frozen: img_backbone, img_neck, pts_branch." in said
    assert "32 trials (8 arms, 4 seeds) find a net gain of the margin" in said
    assert "Trial hours: computed" in said
    lines = (here / "my_study.py").read_text().splitlines()
    assert len(lines) <= 51
    assert main(["study", "power", "my_study.py"]) == 0


def test_an_epoch_shorter_than_a_step_is_told_as_that(here):
    table = [{"name": name, "nbr_samples": 4} for name in ("scene-0001", "scene-0003")]
    (here / "of-v1.0-trainval/v1.0-trainval/scene.json").write_text(json.dumps(table))
    assert new(config=R50, data="of-v1.0-trainval", init="cmt.pth", gpus="8") in (0, 1)
    text = (here / "my_study.py").read_text()
    assert "steps=1, batch_size=2,  # one step of 16 frames, as the data have 4; a batch" in text


def test_a_config_of_cmt_of_mmcv_1_becomes_a_study(here, capsys):
    """The commands of docs/your_study.md, one after the other."""
    assert main(["lint", str(OLD), "--fix", "--out", "my_cmt.py"]) == 0
    assert new("--hours", "6", config="my_cmt.py", gpus="8") == 2
    assert "`biaswise plan my_cmt.py --aqr --out NEW.py`" in capsys.readouterr().err
    assert main(["plan", "my_cmt.py", "--aqr", "--out", "my_cmt_aqr.py"]) == 0
    assert main(["lint", "my_cmt_aqr.py"]) == 0
    given = {"config": "my_cmt_aqr.py", "data": "of-v1.0-trainval", "init": "cmt.pth"}
    assert new("--hours", "6", gpus="8", **given) == 0
    said = capsys.readouterr().out
    assert "Frozen: img_backbone, pts_backbone, pts_middle_encoder." in said
    assert "as for cmt_aqr_voxel0100_r50_800x320_cbgs." in said
    assert recipe("my_study.py").sites == tuple(f"decoder.{layer}.cross" for layer in range(6))


def test_hours_bound_the_study(here, capsys):
    assert new("--hours", "0.07") == 0
    few = recipe("my_study.py")
    assert (len(few.trials), few.confirmation_seeds) == (8, ())
    assert new("--hours", "0.01", file="other.py") == 2
    assert (
        "can decide nothing at a margin of 0.5 points; the smallest that can takes 8"
        in capsys.readouterr().err
    )
    assert not (here / "other.py").exists()


def test_full_size_on_eight_gpus(here, capsys):
    (here / "of-v1.0-trainval/nuscenes_dbinfos_train.pkl").touch()
    assert new(config=R50, data="of-v1.0-trainval", init="cmt.pth", gpus="8") == 0
    made = recipe("my_study.py")
    first = made.trials[0]
    assert (first.num_workers, first.train.batch_size, first.device, first.train.amp) == (8, 2, "cuda", True)
    assert first.plan["decoder.5.cross"] == Choice("none", "rects")
    assert {key.rpartition(".")[2]: json.loads(text) for key, text in first.overrides} == {
        "norm_eval": True,
        "info_path": "of-v1.0-trainval/nuscenes_dbinfos_train.pkl",
        "data_root": "of-v1.0-trainval",
    }
    assert len(made.design.arms) == 16
    assert "h on 8 GPUs" in capsys.readouterr().out


def test_the_command_that_wrote_it_is_in_the_file(here):
    new("--treatment", "window", "--treatment", "gaussian:3", "--hours", "3")
    text = " ".join((here / "my_study.py").read_text().split())
    words = f"--config {MINI_CONFIG} --data of-v1.0-mini --init {MINI_CHECKPOINT} --gpus 0 --hours 3"
    assert f"biaswise study new my_study.py {words} --treatment window --treatment gaussian:3" in text
    assert recipe("my_study.py").rule.treatments == ("window", "gaussian:3")


@pytest.mark.parametrize(
    ("words", "given", "sentence"),
    [
        ([], {"file": "study.txt"}, "give it a name that ends in .py"),
        ([], {"file": "there.py"}, "there.py: exists already; choose another name"),
        ([], {"file": "demo.py"}, "'demo' is the name of a recipe that ships"),
        ([], {"file": "my study.py"}, "'my study' cannot name a study"),
        ([], {"gpus": "-1"}, "--gpus -1: expected the number of GPUs"),
        (["--hours", "0"], {}, "--hours 0: expected a number above 0"),
        (["--hours", "inf"], {}, "--hours inf: expected a number above 0"),
        (["--noise", "0"], {}, "--noise 0: trainings without noise need no study"),
        (["--price-noise", "-1"], {}, "--price-noise -1: expected points, 0 or more"),
        ([], {"init": "no.pth"}, "--init no.pth: there is no "),
        ([], {"config": "no.py"}, "there is no config file"),
        ([], {"data": "nowhere"}, "--data nowhere: there is no"),
        ([], {"data": "."}, "no tables; expected a folder such as v1.0-trainval in it"),
        ([], {"init": "folder.pth"}, "folder.pth is a folder, expected a file"),
        ([], {"init": "no_weights.pth"}, "no_weights.pth is not a whole checkpoint of PyTorch"),
        ([], {"init": "no_weights.pth", "config": R50, "gpus": "8"}, "is not a whole checkpoint of PyTorch"),
        ([], {"init": "cmt.pth"}, "--init cmt.pth: "),
        (["--treatment", "magic"], {}, f"--treatment magic: {EXPECTED}"),
        (["--treatment", "windw:5"], {}, f"--treatment windw:5: {EXPECTED}"),
        (["--treatment", "window:-5"], {}, f"--treatment window:-5: {EXPECTED}"),
        (["--treatment", "window:0"], {}, f"--treatment window:0: {EXPECTED}"),
        (["--treatment", "window:"], {}, f"--treatment window:: {EXPECTED}"),
        (["--treatment", "global:5"], {}, f"--treatment global:5: {EXPECTED}"),
        (["--treatment", "none"], {}, f"--treatment none: {EXPECTED}"),
        (["--treatment", "window", "--treatment", "window"], {}, "--treatment window: is given twice"),
        (
            ["--treatment", "window:5", "--treatment", "gaussian:500"],
            {},
            "--treatment gaussian:500: a window of 500 cells does not fit into the BEV map of ",
        ),
        ([], {"config": PLAIN, "init": "no.pth"}, f"`biaswise plan {PLAIN} --aqr --out NEW.py` writes"),
        ([], {"config": VOV}, f"has AQR as {VOV.replace('cmt', 'cmt_aqr', 1)} has"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else None,
)
def test_refusals(here, capsys, words, given, sentence):
    (here / "there.py").touch()
    assert new(*words, **given) == 2
    assert sentence in capsys.readouterr().err
    assert {file.name for file in here.glob("*.py")} == {"there.py"}
