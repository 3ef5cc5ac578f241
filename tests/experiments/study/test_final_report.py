"""The report of a folder that somebody else made: nothing in it is run, unless that is asked for."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.recipes.mini import smoke

ROOT = Path(__file__).parents[3]
MINI = ROOT / "experiments/configs/cmt_aqr_pillar_mini.py"


@pytest.fixture
def mark(tmp_path):
    """The file that a study's config makes when it is run; the study is in the same folder."""
    mark = tmp_path / "mark"
    shutil.copytree(ROOT / "tests/golden/report", tmp_path / "received")
    two_layers = "model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(num_layers=2))))"
    config = f"_base_ = [{str(MINI)!r}]\n{two_layers}\nopen({str(mark)!r}, 'w').close()\n"
    (tmp_path / "config.py").write_text(config)
    overrides = [["model.pts_bbox_head.num_query", "100"]]
    settings = {**smoke().trials[0].to_dict(), "config": str(tmp_path / "config.py"), "overrides": overrides}
    for trial in tmp_path.glob("received/trials/*"):
        (trial / "settings.json").write_text(json.dumps(settings))
    return mark


@pytest.mark.parametrize("options", [[], ["--figures"]])
def test_a_report_runs_no_config(mark, options):
    study = mark.with_name("received")
    assert main(["study", "report", str(study), *options]) == 0
    assert not mark.exists()
    assert not (study / "recommended.py").exists()
    assert (study / "report.html").exists() == bool(options)


def test_the_recommended_config_is_printed_when_asked_for_and_what_is_run_is_said(mark, capsys):
    study = mark.with_name("received")
    assert main(["study", "report", str(study), "--plan-config"]) == 0
    assert mark.exists()
    said = capsys.readouterr().out
    assert said.startswith(f"Running {mark.with_name('config.py')}, to print the plan as a config.")
    assert f"The plan as a config: {study / 'recommended.py'}" in said
    printed = (study / "recommended.py").read_text()
    assert '_base_ = ["../config.py"]' in printed
    assert "num_query=100" in printed


def test_the_help_says_that_the_config_is_run(capsys):
    with pytest.raises(SystemExit):
        main(["study", "report", "--help"])
    assert "runs the config that the study's trials name, as code" in " ".join(
        capsys.readouterr().out.split()
    )
