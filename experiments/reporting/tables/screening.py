"""The table of a screening: gains with the bias switched off at inference, beside gains of retraining."""

from collections.abc import Sequence

import numpy as np

from experiments.analysis.decide import Evidence
from experiments.analysis.screening import Ranked
from experiments.analysis.verdicts import PAYS, Verdict
from experiments.reporting.tables.base import Table


def screening_table(ranked: Sequence[Ranked], evidence: Evidence | None) -> Table:
    """Return one line per site, the most promising first: screened, and retrained where both exist."""
    verdicts = retrained(evidence) if evidence else {}
    lines = []
    for place, one in enumerate(ranked, 1):
        v = verdicts.get(one.site)
        lines.append(
            (
                *(one.site, place, one.effect, one.alone, one.last),
                *((v.effect, v.low, v.high, v.verdict) if v else (None, None, None, None)),
            )
        )
    heads = (
        *("layer", "rank", "screened gain", "only this layer on", "only this layer off"),
        *("retrained gain", "low", "high", "verdict"),
    )
    title = "Screening (an intervention on one trained model, no verdict) and retraining, points"
    return Table("screening", title, heads, tuple(lines))


def compare_screening(ranked: Sequence[Ranked], evidence: Evidence) -> str:
    """Return a sentence on how well screening and retraining agree; empty with fewer than two sites."""
    verdicts = retrained(evidence)
    both = [(one, verdicts[one.site]) for one in ranked if one.site in verdicts]
    if len(both) < 2:
        return ""
    paying = {v.site for _, v in both if v.verdict == PAYS}
    top = {one.site for one, _ in both[: len(paying)]}
    layers = "1 layer that pays" if len(paying) == 1 else f"{len(paying)} layers that pay"
    hit = f" Of the {layers} off, it ranks {len(paying & top)} first." if paying else ""
    rho = spearman([one.effect for one, _ in both], [v.effect for _, v in both])
    bias = sum(one.effect - v.effect for one, v in both) / len(both)
    return (
        f"The screening's order agrees with that of retraining by Spearman's {rho:.2f} over {len(both)} "
        f"layers; its gains are on average {abs(bias):.2f} points too {'high' if bias > 0 else 'low'}.{hit}"
    )


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN if all values of a sequence are equal.

    It equals ``scipy.stats.spearmanr``, whose import takes longer than all else that a report does.
    """
    ranks = []
    for values in (one, other):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((count.cumsum() - (count - 1) / 2)[place])  # equal values share the mean of their ranks
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks)[0, 1])


def retrained(evidence: Evidence) -> dict[str, Verdict]:
    """Return site -> verdict on the level that a screening switches: the rule's first treatment."""
    return {v.site: v for v in evidence.verdicts if v.treatment == evidence.rule.treatments[0]}
