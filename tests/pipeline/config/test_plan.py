"""Plans read back what they print, resolve to every site, and refuse what fits none or two."""

import pytest

from operators.spec import BIAS_KINDS, IMPLEMENTATIONS
from pipeline.config.plan import Choice, Plan, PlanError

SITES = ["aqr.0.cross", "decoder.0.self", "decoder.0.cross", "decoder.1.self", "decoder.1.cross"]


@pytest.mark.parametrize("bias", BIAS_KINDS)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_choices_read_back_what_they_print(bias, impl):
    assert Choice.parse(str(Choice(bias, impl))) == Choice(bias, impl)


def test_a_rank_is_part_of_the_choice():
    choice = Choice("window", "lowrank", rank=8)
    assert str(choice) == "window/lowrank@8"
    assert Choice.parse(str(choice)) == choice


def test_a_window_is_part_of_the_choice():
    for choice in (Choice("window", "rects", window=15), Choice("gaussian", "lowrank", 8, 4)):
        assert Plan.parse(str(Plan.of({"a": choice})))["a"] == choice
    assert str(choice) == "gaussian:4/lowrank@8"
    assert Choice("window", "rects") != Choice("window", "rects", window=15)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("window:/rects", "cannot read the choice 'window:/rects'; expected 'bias/impl', 'window:15/impl'"),
        ("window:-3/rects", "cannot read"),
        ("window:0/rects", "a window of 1 cell or more goes with window and gaussian alone"),
        ("local:5/rects", "window=5 with bias='local'"),
        ("none:5/rects", "window=5 with bias='none'"),
        ("window", "cannot read the choice 'window'"),
        ("magic/flex", "unknown bias kind 'magic'; expected one of none, global"),
        ("window/magic", "unknown implementation 'magic'; expected one of reference"),
        ("window/lowrank@", "cannot read"),
        ("window/lowrank@-1", "cannot read"),
        ("window/lowrank@0", "a positive rank goes with lowrank alone"),
        ("window/flex@4", "a positive rank goes with lowrank alone"),
    ],
)
def test_choices_nobody_can_make(text, sentence):
    with pytest.raises(PlanError, match=sentence):
        Choice.parse(text)


def test_plans_read_back_what_they_print():
    plan = Plan.of({"aqr.*": "local/sdpa_math", "decoder.*": Choice("window", "lowrank", 4)})
    assert Plan.parse(str(plan)) == plan
    assert Plan.parse(str(plan)).digest == plan.digest
    assert Plan.of({"aqr.*": "none/sdpa_math"}).digest != plan.digest
    with pytest.raises(PlanError, match="expected 'pattern=bias/impl'"):
        Plan.parse("decoder.0.cross")


def test_resolved_names_every_site_in_model_order():
    plan = Plan.of(
        {"decoder.*.cross": "window/flex", "decoder.*.self": "none/flex", "aqr.0.cross": "local/flex"}
    )
    resolved = plan.resolve(SITES)
    assert [site for site, _ in resolved.choices] == SITES
    assert resolved["decoder.1.cross"] == Choice("window", "flex")
    assert resolved.resolve(SITES) == resolved


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (
            {"*": "none/flex", "decoder.9.*": "none/flex"},
            r"'decoder\.9\.\*' matches no site; the model has aqr",
        ),
        (
            {"*": "none/flex", "*.0.cross": "none/flex"},
            r"aqr\.0\.cross is matched by '\*' and '\*\.0\.cross'",
        ),
        ({"decoder.*": "none/flex"}, "site aqr.0.cross has no choice"),
        ({"Decoder.*": "none/flex"}, "matches no site"),
    ],
)
def test_plans_that_do_not_fit(choices, sentence):
    with pytest.raises(PlanError, match=sentence):
        Plan.of(choices).resolve(SITES)


def test_a_site_that_the_plan_lacks():
    with pytest.raises(PlanError, match=r"has no site 'decoder\.7\.cross'; it has a"):
        Plan.of({"a": "none/flex"})["decoder.7.cross"]
