"""What is measured, against what price, how sure a verdict must be.

Written in the recipe before the first trial runs; its digest is part of the recipe's, which
every row carries. Plain values, so that JSON holds it and anybody can read it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from operators.spec import BIAS_KINDS

SPENDINGS = ("obrien_fleming", "pocock")
"""How the error probability is spent over the looks; formulas: ``experiments.analysis.alpha_spending``."""
PRICED_BY = ("trials", "bench")
"""Where the slow-down comes from: the trials' own step times, or the operator benchmark."""


BY_SCREENING = ("screening",)
"""``order`` of a rule that takes it from the study's own screening (``biaswise study screen``)."""


class AnalysisError(ValueError):
    """Rows or a rule from which no verdict can be drawn; the message is one sentence."""


class ScreeningMissing(AnalysisError):
    """A rule that asks for a screening, and there is none yet."""


@dataclass(frozen=True)
class DecisionRule:
    """How rows become verdicts.

    A site PAYS if its gain in ``metric`` (treatment minus baseline, in points: 100 times the
    fraction) is above its price, COSTS if it is below, with the given confidence, and is
    UNDECIDED otherwise. Its price is its slow-down times ``price_points_per_percent``.

    Attributes:
        metric: a metric in the unit ``fraction`` (``NDS``, ``mAP``).
        condition: sensor condition the verdict is about.
        treatment: level whose worth is asked: a bias kind (``window``), or a bias kind with an
            approximate implementation (``window/lowrank@16``).
        baseline: level it is compared with.
        sites: the factors; empty reads them from the plans (every site whose bias varies).
        seeds: the blocks; empty reads them from the rows. A study that names its sites and
            seeds notices when all trials of one of them are missing.
        price_metric: time per training step, in any unit (a ratio is taken).
        price_points_per_percent: points of ``metric`` that one per cent of slow-down must earn.
        confidence: that all verdicts, over all sites and all looks, are right together.
        more_treatments: further levels, each compared with the baseline.
        arms: what the design runs, a tuple of levels (one per site) each; empty: all combinations.
        margin: smallest gain worth having, points. A net gain that is certainly between minus and plus
            this is reported as equivalent: nothing worth looking for.
        looks: numbers of complete seeds after which the study is judged, increasing; empty: once, at
            the end. Rows of seeds beyond the last look that was reached wait for the next one.
        spending: one of ``SPENDINGS``.
        order: sites, the most promising first; Holm's procedure then weighs each twice as much as the next.
            ``BY_SCREENING``: as the study's screening ranks them, which compares masks of one trial with each
            other and so knows nothing of how the trials differ. Empty: equal weights.
        priced_by: one of ``PRICED_BY``.
        bench_shape: shape of the benchmark that is the model's; empty if the benchmark has one alone.
    """

    metric: str = "NDS"
    condition: str = "clean"
    treatment: str = "window"
    baseline: str = "none"
    sites: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    price_metric: str = "step_ms"
    price_points_per_percent: float = 0.1
    confidence: float = 0.95
    more_treatments: tuple[str, ...] = ()
    arms: tuple[tuple[str, ...], ...] = ()
    margin: float = 0.5
    looks: tuple[int, ...] = ()
    spending: str = "obrien_fleming"
    order: tuple[str, ...] = ()
    priced_by: str = "trials"
    bench_shape: str = ""

    def __post_init__(self) -> None:
        """Refuse a rule that can decide nothing."""
        for level in (*self.treatments, self.baseline):
            if level.partition("/")[0].partition(":")[0] not in BIAS_KINDS:
                raise AnalysisError(
                    f"the rule names the bias {level!r}; expected one of {', '.join(BIAS_KINDS)}"
                )
        levels = (self.baseline, *self.treatments)
        if twice := sorted({level for level in levels if levels.count(level) > 1}):
            raise AnalysisError(f"the rule compares {twice[0]!r} with itself; name two bias kinds")
        if not 0.5 <= self.confidence < 1:
            raise AnalysisError(f"the rule's confidence is {self.confidence}; expected 0.5 <= it < 1")
        if not self.price_points_per_percent >= 0:
            raise AnalysisError(
                f"the rule's price is {self.price_points_per_percent} points; expected 0 or more"
            )
        if not self.margin > 0:
            raise AnalysisError(
                f"the rule's margin is {self.margin} points; expected the smallest gain worth having, above 0"
            )
        self._refuse_bad_plan()

    def _refuse_bad_plan(self) -> None:
        if any(len(arm) != len(self.sites) for arm in self.arms):
            raise AnalysisError(
                f"the rule has arms that do not fit its {len(self.sites)} sites; an arm is a level per site"
            )
        if self.looks and (self.looks[0] < 1 or list(self.looks) != sorted(set(self.looks))):
            raise AnalysisError(f"the rule's looks are {self.looks}; expected increasing numbers of seeds")
        if self.looks and self.seeds and self.looks[-1] > len(self.seeds):
            raise AnalysisError(
                f"the rule's last look comes after {self.looks[-1]} seeds, but it names {len(self.seeds)}"
            )
        if self.spending not in SPENDINGS:
            raise AnalysisError(
                f"the rule's spending is {self.spending!r}; expected {' or '.join(SPENDINGS)}"
            )
        if self.priced_by not in PRICED_BY:
            raise AnalysisError(
                f"the rule is priced by {self.priced_by!r}; expected {' or '.join(PRICED_BY)}"
            )
        if self.order not in ((), BY_SCREENING) and sorted(self.order) != sorted(self.sites):
            raise AnalysisError("the rule's order does not hold its sites, each once; rank all of them")

    @property
    def treatments(self) -> tuple[str, ...]:
        """All levels that are compared with the baseline."""
        return (self.treatment, *self.more_treatments)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``from_dict`` reads them back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def _about_order(self) -> str:
        if not self.order:
            return ""
        order = "a screening" if self.order == BY_SCREENING else f"the order {', '.join(self.order)}"
        return f" Each layer is tested with twice the weight of the next, by {order}."

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "DecisionRule":
        """Rebuild a rule from ``to_dict``; refuse a key that no rule has."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(plain) - set(known)):
            raise AnalysisError(f"a rule has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**{key: _frozen(value) for key, value in plain.items()})

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this rule."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Say the rule in words."""
        percent = "\N{NO-BREAK SPACE}%"
        together = "all layers" + (f" and {len(self.looks)} looks" if len(self.looks) > 1 else "")
        return (
            f"A layer pays off if {' or '.join(self.treatments)} instead of {self.baseline} there gains "
            f"more {self.metric} ({self.condition}) than its price of "
            f"{self.price_points_per_percent:g} points per "
            f"1{percent} of step time, and costs if it gains less, at {100 * self.confidence:g}{percent} "
            f"confidence for {together} together. A net gain within {self.margin:g} points of zero is "
            f"not worth having.{self._about_order()}"
        )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
