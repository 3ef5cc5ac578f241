"""Verdicts as tracking keeps and shows them."""

import json
import math
import shutil
from pathlib import Path

import pytest

from experiments.reporting.summary import summarize
from experiments.study.final_report import verdicts_of, write_verdicts
from pipeline.tracking.study_verdicts import (
    RecommendedPlan,
    SiteVerdict,
    StudyVerdicts,
    VerdictsError,
    read_verdicts,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "report"
ONE = SiteVerdict("decoder.0.cross", "window", "PAYS", 2.0, 1.5, 1.0)


def test_what_is_written_is_read_again(tmp_path):
    golden = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    written = write_verdicts(summarize(golden), golden)
    assert [verdict.verdict for verdict in written.sites] == ["PAYS", "UNDECIDED"]
    assert written.recommended.plan == "window at 0 + 1"
    assert read_verdicts(golden) == written


def test_a_study_without_verdicts_has_none(tmp_path):
    golden = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    shutil.rmtree(golden / "trials")
    shutil.copytree(GOLDEN / "trials/w11-s0", golden / "trials/w11-s0")
    assert verdicts_of(summarize(golden)) == StudyVerdicts()
    assert read_verdicts(golden) == StudyVerdicts()


def test_a_site_is_named_with_its_treatment_only_if_there_are_several():
    other = SiteVerdict("decoder.0.cross", "gaussian", "COSTS", -1.0, -2.0, 3.0)
    assert StudyVerdicts((ONE,)).tags() == {"verdict.decoder.0.cross": "PAYS"}
    assert StudyVerdicts((ONE, other)).tags() == {
        "verdict.decoder.0.cross.window": "PAYS",
        "verdict.decoder.0.cross.gaussian": "COSTS",
    }
    assert StudyVerdicts((ONE, other)).metrics()["net_gain/decoder.0.cross.gaussian"] == -2.0


def test_numbers_that_are_missing_are_no_metrics():
    metrics = StudyVerdicts((), RecommendedPlan("none", 0.0, math.nan, 40.0)).metrics()
    assert metrics == {"recommended/utility": 0.0, "recommended/predicted_accuracy": 40.0}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"sites": []}', '{"sites": [{"x": 1}], "recommended": null}']
)
def test_a_file_that_holds_no_verdicts_is_refused(tmp_path, content):
    (tmp_path / "verdicts.json").write_text(content)
    with pytest.raises(VerdictsError, match=r"verdicts\.json: not the verdicts of a study .* study report"):
        read_verdicts(tmp_path)


def test_plain_values_are_json():
    verdicts = StudyVerdicts((ONE,), RecommendedPlan("window at 0", 1.5, 2.0, 42.0))
    assert StudyVerdicts.from_dict(json.loads(json.dumps(verdicts.to_dict()))) == verdicts
