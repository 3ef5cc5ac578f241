"""Which treatments make trainings fail: counts per term, with Fisher's exact test.

A training failed if it diverged (no number) or collapsed (a number far below what the others predict). The
linear model leaves both out, so a gain is that of trainings that train. What this leaves out stands here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from experiments.analysis.design_table import DesignTable


@dataclass(frozen=True)
class Failures:
    """Failed trainings with a treatment at a site, and without any there.

    Attributes:
        site, treatment: the term.
        failed_with, trials_with: with the treatment at the site.
        failed_without, trials_without: with the baseline there.
        p_value: Fisher's exact test, two-sided, that both fail equally often.
    """

    site: str
    treatment: str
    failed_with: int
    trials_with: int
    failed_without: int
    trials_without: int
    p_value: float

    @property
    def more_with(self) -> bool:
        """Whether a larger share fails with the treatment: then a gain is that of the others alone."""
        return self.failed_with * self.trials_without > self.failed_without * self.trials_with


def count_failures(table: DesignTable, collapsed: Sequence[str]) -> tuple[Failures, ...]:
    """Count the failed trainings of every term.

    Args:
        table: the design as it ran; it names what diverged.
        collapsed: names of the trials that collapsed (``Fit.collapsed``).
    """
    failed = {*table.diverged, *collapsed}
    counted = []
    for site, treatment in table.terms:
        index = table.sites.index(site)
        with_it = [t.name in failed for t in table.trials if t.levels[index] == treatment]
        without = [t.name in failed for t in table.trials if t.levels[index] == table.baseline]
        counts = sum(with_it), len(with_it), sum(without), len(without)
        counted.append(Failures(site, treatment, *counts, fisher(*counts)))
    return tuple(counted)


def fisher(failed_with: int, trials_with: int, failed_without: int, trials_without: int) -> float:
    """Return the two-sided p-value of Fisher's exact test, that of ``scipy.stats.fisher_exact``.

    It is counted here in whole numbers, because a report should not wait a second for scipy.stats.
    """
    failed = failed_with + failed_without
    possible = range(max(0, failed - trials_without), min(failed, trials_with) + 1)
    ways = [comb(trials_with, k) * comb(trials_without, failed - k) for k in possible]
    seen = ways[failed_with - possible[0]]
    return sum(way for way in ways if way <= seen) / comb(trials_with + trials_without, failed)
