"""Designs: their arms counted, their resolution recomputed from the columns, their refusals."""

from itertools import combinations

import numpy as np
import pytest

from experiments.recipes.factorial import (
    Design,
    DesignError,
    Factor,
    all_but_one,
    fraction,
    full,
    level_of,
    listed,
    one_at_a_time,
    plan_of,
)
from pipeline.config.plan import Choice


def factors(count):
    return [Factor(f"decoder.{i}.cross") for i in range(count)]


def signs(design):
    """(arms, factors) with -1 for the baseline and 1 for the other level."""
    return np.array([[1 if level != "none" else -1 for level in arm] for arm in design.arms])


def shortest_word(design):
    """Length of the smallest set of factors whose product is the same in all arms, found by trying all."""
    columns = signs(design)
    for size in range(1, columns.shape[1] + 1):
        for chosen in combinations(range(columns.shape[1]), size):
            if abs(columns[:, chosen].prod(axis=1).sum()) == len(columns):
                return size
    return None


@pytest.mark.parametrize(
    ("count", "halvings", "arms", "resolution"),
    [(4, 1, 8, 4), (5, 1, 16, 5), (6, 1, 32, 6), (6, 2, 16, 4), (7, 3, 16, 4), (8, 4, 16, 4), (9, 4, 32, 4)],
)
def test_fractions_have_the_resolution_of_the_textbook(count, halvings, arms, resolution):
    design = fraction(factors(count), halvings)
    assert len(design.arms) == arms
    assert design.resolution == resolution == shortest_word(design)
    assert len(design.relation) == 2**halvings - 1
    assert design.arms[0] == design.baseline
    assert (signs(design).sum(axis=0) == 0).all()  # every site is treated in half of the arms


def test_a_fraction_below_resolution_four_is_refused():
    with pytest.raises(DesignError, match="expected 1 to 2 halvings, got 3"):
        fraction(factors(6), 3)


def test_few_factors_have_no_fraction():
    with pytest.raises(DesignError, match="3 factors have no fraction of resolution IV; use a full design"):
        fraction(factors(3), 1)


def test_a_level_has_the_implementation_that_it_names_or_its_own():
    levels = ("none", "window", "window/lowrank@16")
    design = listed([Factor("decoder.0.cross", levels)], [(level,) for level in levels])
    impls = {"none": "sdpa_flash", "window": "rects"}
    plans = [str(plan_of(design, arm, {}, impls)).partition("=")[2] for arm in design.arms]
    assert plans == ["none/sdpa_flash", "window/rects", "window/lowrank@16"]
    with pytest.raises(DesignError, match="the level 'window' has no implementation; name it in impls"):
        plan_of(design, ("window",), {}, {"none": "sdpa_flash"})


def test_a_fraction_takes_two_levels():
    with pytest.raises(DesignError, match="more than two levels"):
        fraction([*factors(5), Factor("x", ("none", "window", "global"))], 2)


def test_a_full_factorial_has_every_combination_of_several_levels():
    three = Factor("a", ("none", "window", "window/lowrank@16"))
    design = full([three, Factor("b")])
    assert len(design.arms) == 6
    assert design.relation == ()
    assert design.resolution is None


def test_one_at_a_time_and_all_but_one():
    alone = one_at_a_time(factors(3))
    assert [sum(level != "none" for level in arm) for arm in alone.arms] == [0, 1, 1, 1]
    without = all_but_one(factors(3))
    assert sorted(sum(level != "none" for level in arm) for arm in without.arms) == [0, 2, 2, 2, 3]
    assert len(one_at_a_time([Factor("a", ("none", "window", "global"))]).arms) == 3


def test_lists_are_taken_as_given_and_checked():
    two = factors(2)
    assert listed(two, [("none", "none"), ("window", "none")]).arms[1] == ("window", "none")
    for arms, sentence in (
        ([("none", "global")], "has 'global' at decoder.1.cross"),
        ([("none",)], "has 1 levels for 2 factors"),
        ([("none", "none")] * 2, "in the design twice"),
    ):
        with pytest.raises(DesignError, match=sentence):
            listed(two, arms)
    with pytest.raises(DesignError, match="needs a factor"):
        Design("list", (), ())
    with pytest.raises(DesignError, match="expected two or more"):
        Factor("a", ("none",))


def test_an_arm_becomes_a_plan_and_a_plan_its_levels():
    levels = ("none", "window", "window/lowrank@16")
    design = full([Factor("a", levels), Factor("b", levels)])
    for arm in design.arms:
        plan = plan_of(design, arm, {"c": "local/sdpa_math"}, impls="rects")
        assert (level_of(plan["a"]), level_of(plan["b"])) == arm
    assert level_of(Choice("global", "lowrank")) == "global"  # exact: an implementation, no level
