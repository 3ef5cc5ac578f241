"""The words of ``biaswise throughput``."""

import json

import pytest

from experiments.commands.throughput import chosen, override
from pipeline.plan import Plan, PlanError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=window", "window"),
        ("a.b=True", True),
        ("a.b=None", None),
        ('a.b="3"', "3"),
        ("a.b=", ""),
    ],
)
def test_overrides_read_like_those_of_mmengine(text: str, value: object) -> None:
    key, found = override(text)
    assert (key, json.loads(found)) == ("a.b", value)


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(PlanError, match=r"--cfg-options a.b: expected KEY=VALUE"):
        override("a.b")


def test_plans_are_named_or_spelled() -> None:
    named = {"plain": Plan.of({"*": "none/sdpa_math"})}
    found = chosen(["config", "plain", "mine:*=window/rects"], named)
    assert found == {"config": None, "plain": named["plain"], "mine": Plan.parse("*=window/rects")}
    with pytest.raises(PlanError, match="--plans fast: expected one of config, plain, or NAME"):
        chosen(["fast"], named)
