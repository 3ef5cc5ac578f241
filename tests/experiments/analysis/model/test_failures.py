"""Failures by layer: counts by hand, p-values of the book."""

from dataclasses import replace

import pytest
from scipy.stats import fisher_exact

from experiments.analysis.model.failures import count_failures, fisher
from tests.experiments.analysis.model.studies import TABLES


def test_diverged_and_collapsed_trainings_are_counted_by_layer():
    table = TABLES["6fx2"]
    with_first = [trial.name for trial in table.trials if trial.levels[0] != "none"]
    failed = count_failures(replace(table, diverged=(with_first[0],)), (with_first[5],))
    first = failed[0]
    assert (first.failed_with, first.trials_with) == (2, 16)
    assert (first.failed_without, first.trials_without) == (0, 16)
    assert first.more_with
    # two of two on one side of 16 and 16: 2 * C(16, 2) / C(32, 2)
    assert first.p_value == pytest.approx(2 * 120 / 496)
    assert [f.failed_with + f.failed_without for f in failed] == [2] * 6


def test_nothing_or_everything_failed():
    failed = count_failures(TABLES["3x2"], ())
    assert not any(f.more_with for f in failed)
    assert failed[0].p_value == 1
    everything = count_failures(TABLES["3x2"], [trial.name for trial in TABLES["3x2"].trials])
    assert (everything[0].failed_with, everything[0].more_with) == (everything[0].trials_with, False)


@pytest.mark.parametrize("counts", [(0, 8, 0, 8), (3, 8, 0, 8), (0, 4, 5, 12), (2, 6, 2, 6), (0, 0, 2, 5)])
def test_the_exact_test_is_that_of_scipy(counts):
    failed_with, trials_with, failed_without, trials_without = counts
    table = [[failed_with, trials_with - failed_with], [failed_without, trials_without - failed_without]]
    assert fisher(*counts) == pytest.approx(fisher_exact(table).pvalue, rel=1e-9)
