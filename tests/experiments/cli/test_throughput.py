"""The words of ``biaswise throughput``."""

import pytest

from experiments.cli.options import OptionError
from experiments.cli.throughput import read_plans
from pipeline.config.plan import Plan


def test_plans_are_named_or_spelled() -> None:
    named = {"plain": Plan.of({"*": "none/sdpa_math"})}
    plans = read_plans(["config", "plain", "mine:*=window/rects"], named)
    assert plans == {"config": None, "plain": named["plain"], "mine": Plan.parse("*=window/rects")}
    with pytest.raises(OptionError, match="--plans fast: expected one of config, plain, or NAME"):
        read_plans(["fast"], named)
