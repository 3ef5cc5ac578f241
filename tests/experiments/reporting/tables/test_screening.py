"""Screening beside retraining: the order, the size, and what it may not say."""

import json
import shutil
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from experiments.analysis.screening import RANKING, ranking_record
from experiments.reporting.markdown import to_markdown
from experiments.reporting.page import drawings
from experiments.reporting.summary import summarize
from experiments.reporting.tables.screening import spearman
from tests.experiments.planted_rows import screening, window_rule

GOLDEN = Path(__file__).parents[3] / "golden" / "report"


@pytest.fixture
def golden(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def test_screened_gains_stand_beside_the_retrained(golden):
    screening(golden, (1.32, 0.24))
    summary = summarize(golden)
    (table,) = [table for table in summary.tables if table.name == "screening"]
    first, second = summary.evidence.verdicts
    assert table.lines[0][:2] == ("decoder.0.cross", 1)
    assert table.lines[0][2:5] == pytest.approx((1.32, 1.32, 1.32))
    assert table.lines[0][5:] == (first.effect, first.low, first.high, first.verdict)
    assert table.lines[1][2] == pytest.approx(0.24)
    assert table.lines[1][5] == second.effect
    low = (first.effect + second.effect - 1.32 - 0.24) / 2
    assert (
        f"Spearman's 1.00 over 2 layers; its gains are on average {low:.2f} points too low. "
        "Of the 1 layer that pays off, it ranks 1 first." in summary.notes[-1]
    )
    assert "screening" in [drawing.name for drawing in drawings(summary)]
    assert "no verdict" in table.title


def test_a_screening_that_is_wrong_is_said_to_be(golden):
    screening(golden, (-1.0, 3.0))
    note = summarize(golden).notes[-1]
    assert "Spearman's -1.00" in note
    assert "it ranks 0 first" in note


@pytest.mark.parametrize("other", [(1, 2, 3, 4, 5), (5, 5, 1, 2, 1), (0.3, 0.1, 0.1, 0.1, 0.2)])
def test_the_rank_correlation_is_that_of_scipy(other):
    one = (2.0, 1.0, 1.0, 4.0, 3.0)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


def test_an_edited_or_unfinished_screening_is_left_out(golden):
    path = screening(golden, (1.0, 0.0), leave_out=1)
    assert "left out: 1 of 4 masks have no NDS" in summarize(golden).notes[-1]
    path.unlink()
    path = screening(golden, (1.0, 0.0))
    record = ranking_record(path, summarize(golden).screened, window_rule(), "aaaabbbbcccc")
    path.with_name(RANKING).write_text(json.dumps(record))
    assert "left out" not in summarize(golden).notes[-1]
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    summary = summarize(golden)
    assert "left out: the rows in masks.jsonl are not those it wrote" in summary.notes[-1]
    assert "## Verdict per layer" in to_markdown(summary)
