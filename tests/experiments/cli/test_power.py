"""``biaswise study power``: what it prints, what it refuses, what it costs to ask."""

import re

import pytest

from experiments.cli.main import main
from tests.experiments.cli.test_imports import NO_TORCH, imported


def test_it_imports_no_torch_and_no_statistics_package():
    assert imported(["study", "power", "smoke"], NO_TORCH - {"scipy"}) == "1"


def test_it_shows_gains_that_shrink_with_the_seeds(capsys, tmp_path):
    assert main(["study", "power", "demo", "--noise", "0.2", "--runs-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines() if line.strip().startswith("full grid")]
    found = {int(re.search(r" (\d+) ", " ".join(words)).group(1)): float(words[-4]) for words in lines}
    assert found[1] > found[2] > found[4] > found[8]
    assert "Trial hours: computed, as no trial has run" in text


@pytest.mark.parametrize("study", ["demo_waves", "r50_waves"])
def test_a_narrow_console_shows_every_number_whole(study, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["study", "power", study, "--runs-dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "…" not in said
    assert "100 %" in said


@pytest.mark.parametrize("option", ["--noise", "--price-noise", "--scene-noise"])
def test_negative_noise_is_refused(option, capsys):
    assert main(["study", "power", "demo", option, "-1"]) == 2
    assert f"{option} -1: expected points, 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["power", "time", "run", "screen"])
@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("train.steps=-5", "settings.train.steps is -5; expected 0 or more"),
        ("train.batch_size=0", "settings.train.batch_size is 0; expected 1 or more"),
        ("conditions=fog", "unknown sensor condition 'fog'; expected clean, "),
        ("torch_threads=0", "settings.torch_threads is 0; expected 1 or more"),
        ("num_workers=0", "settings.num_workers is 0; expected 1 or more"),
        ("device=tpu", "settings.device is 'tpu'; expected cpu or cuda"),
        ("train.amp=true", "settings.train.amp (bfloat16 autocast) is for cuda"),
        ("rule.metric=NSD", "its rule asks for 'NSD'; expected a metric of which more of it is better: NDS"),
        ("rule.condition=fog", "its rule asks for the condition 'fog', and trial "),
    ],
)
def test_what_a_run_would_refuse_is_refused_by_every_command_alike(command, pair, sentence, tmp_path, capsys):
    assert main(["study", command, "smoke", "--set", pair, "--runs-dir", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
