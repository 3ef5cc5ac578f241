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


@pytest.mark.parametrize("option", ["--noise", "--price-noise", "--scene-noise"])
def test_negative_noise_is_refused(option, capsys):
    assert main(["study", "power", "demo", option, "-1"]) == 2
    assert f"{option} -1: expected points, 0 or more" in capsys.readouterr().err
