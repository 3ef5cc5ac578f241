"""The words of ``biaswise throughput``."""

import pytest

from experiments.commands.throughput import chosen
from pipeline.config.plan import Plan, PlanError


def test_plans_are_named_or_spelled() -> None:
    named = {"plain": Plan.of({"*": "none/sdpa_math"})}
    found = chosen(["config", "plain", "mine:*=window/rects"], named)
    assert found == {"config": None, "plain": named["plain"], "mine": Plan.parse("*=window/rects")}
    with pytest.raises(PlanError, match="--plans fast: expected one of config, plain, or NAME"):
        chosen(["fast"], named)
