"""The words of ``biaswise throughput``."""

import pytest

from experiments.cli import main
from experiments.cli.options import OptionError
from experiments.cli.throughput import read_plans
from experiments.recipes.mini import MINI_CONFIG
from pipeline.config.plan import Plan


def test_plans_are_named_or_spelled() -> None:
    named = {"plain": Plan.of({"*": "none/sdpa_math"})}
    plans = read_plans(["config", "plain", "mine:*=window/rects"], named)
    assert plans == {"config": None, "plain": named["plain"], "mine": Plan.parse("*=window/rects")}
    with pytest.raises(OptionError, match="--plans fast: expected one of config, plain, or NAME"):
        read_plans(["fast"], named)
    with pytest.raises(OptionError, match="the name plain is given twice"):
        read_plans(["plain", "plain:*=window/rects"], named)


def test_a_limit_of_memory_is_one_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughput", MINI_CONFIG, "--device", "cpu", "--memory-gib", "9"]) == 2
    assert "--memory-gib 9: expected GiB of a GPU, above 0" in capsys.readouterr().err
