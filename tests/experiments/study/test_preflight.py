"""Preflight of a study: a rule about what no trial will measure is refused before any of them runs."""

from dataclasses import replace

import pytest

from experiments.recipes.mini import demo_waves, smoke
from experiments.recipes.registry import RECIPES, recipe
from experiments.storage.study_folder import StudyError
from experiments.study.preflight import check_rule


@pytest.mark.parametrize("name", RECIPES)
def test_the_rules_that_ship_can_be_answered(name):
    check_rule(recipe(name))


@pytest.mark.parametrize(
    ("made", "changes", "sentence"),
    [
        (
            smoke,
            {"metric": "mAPH"},
            "its rule asks for 'mAPH'; expected a metric of which more of it is better",
        ),
        (smoke, {"metric": "mASE"}, "NDS, mAP, AP/car"),  # an error: less of it is better
        (smoke, {"condition": "fog"}, "asks for the condition 'fog', and trial none_s0_.* measures clean"),
        (demo_waves, {"metric": "AP/car"}, "it is measured where trials may stop: NDS, mAP"),
    ],
)
def test_a_rule_that_no_trial_could_answer_is_refused(made, changes, sentence):
    study = made()
    with pytest.raises(StudyError, match=sentence):
        check_rule(replace(study, rule=replace(study.rule, **changes)))


def test_a_class_is_a_metric():
    study = smoke()
    check_rule(replace(study, rule=replace(study.rule, metric="AP/car")))
