"""What is measured, against what price, how sure a verdict must be.

A recipe states its rule before the first trial runs. The rule's digest is part of the recipe's digest,
which every row carries. A rule holds plain values, so that JSON can store it.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from operators.spec import BIAS_KINDS
from pipeline.errors import written_by_old_version
from pipeline.json_files import JsonError, check_fields

ALPHA_SPENDING = ("obrien_fleming", "pocock")
"""How the interim analyses share the error probability; formulas: ``experiments.analysis.alpha_spending``."""
PRICED_BY = ("stopwatch", "trials")
"""Where the slow-down comes from: a stopwatch run, or the trials' own step times."""
STEPS = ("training", "inference")
"""What can be priced: a training step, a detection at batch 1."""
SCREENING = "screening"
"""``order_by`` of a rule whose order comes from the study's own screening (``biaswise study screen``)."""

MOST = 10_000
"""Most seeds, sites, arms or treatments of a rule: the verdicts' matrices grow with each."""

FIELDS_OF_OLD_VERSION = frozenset({"treatment", "more_treatments", "margin", "looks", "spending"})
"""Fields that a rule of version 0.1.0 has, and a rule of this version does not have."""


class AnalysisError(ValueError):
    """Rows or a rule from which no verdict can be drawn; the message is one sentence."""


class ScreeningMissing(AnalysisError):
    """A rule that asks for a screening, in a study that has none yet."""


@dataclass(frozen=True)
class DecisionRule:
    """How rows become verdicts.

    A site PAYS if its gain in ``metric`` (treatment minus baseline, in points: 100 times the
    fraction) is above its price, COSTS if it is below, makes NO DIFFERENCE if both are within
    ``equivalence_margin``, with the given confidence, and is UNDECIDED otherwise. Its price is its own
    slow-down times ``price_points_per_percent``; what any bias costs once is charged to plans.

    Attributes:
        metric: a metric in the unit ``fraction`` (``NDS``, ``mAP``).
        condition: sensor condition the verdict is about.
        treatments: levels that are compared with the baseline, one or more. A level is a bias kind
            (``window``, or ``window:15`` for windows of that size), or a bias kind with an approximate
            implementation (``window/lowrank@16``).
            Screening and confirmation use the first one. Empty: those of the recipe's design or trials,
            which fills them in.
        baseline: level that the treatments are compared with; empty: likewise, the first of the design's.
        sites: the factors; empty reads them from the plans (every site whose bias varies).
        seeds: the blocks; empty reads them from the rows. A study that names its sites and
            seeds notices when all trials of one of them are missing.
        price_metric: time per training step, in any unit (a ratio is taken).
        price_points_per_percent: points of ``metric`` that one per cent of slow-down must earn.
        confidence: probability that all verdicts, over all sites and all looks, are right together.
        arms: what the design runs, each a tuple of levels (one per site); empty: all combinations.
        equivalence_margin: a net gain that is certainly between minus and plus this, points, and may be
            zero, is NO DIFFERENCE.
        interim_analyses: numbers of complete seeds after which the study is judged, increasing; empty:
            once, at the end. Rows of later seeds wait for the next number.
        alpha_spending: one of ``ALPHA_SPENDING``.
        order: sites, the most promising first; Holm's procedure then gives each twice the weight of the
            next. Empty: equal weights.
        order_by: ``SCREENING``: the order is the ranking of the study's screening, which has a seed of its
            own. Empty: the order is ``order``.
        priced_by: one of ``PRICED_BY``.
        price_of: what is priced: one of ``STEPS``, or pairs of a step and its weight, which add up to 1; the
            slow-down is then their weighted geometric mean. Trials time the training step alone.
        price_half_width: the stopwatch may stop when the 95 % interval of every site's price is at most this
            wide to each side, points.
        stopwatch_s: seconds after which the stopwatch stops in any case.

    Raises:
        AnalysisError: the rule contradicts itself.
    """

    metric: str = "NDS"
    condition: str = "clean"
    treatments: tuple[str, ...] = ()
    baseline: str = ""
    sites: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    price_metric: str = "step_ms"
    price_points_per_percent: float = 0.1
    confidence: float = 0.95
    arms: tuple[tuple[str, ...], ...] = ()
    equivalence_margin: float = 0.5
    interim_analyses: tuple[int, ...] = ()
    alpha_spending: str = "obrien_fleming"
    order: tuple[str, ...] = ()
    order_by: str = ""
    priced_by: str = "stopwatch"
    price_of: str | tuple[tuple[str, float], ...] = "training"
    price_half_width: float = 0.05
    stopwatch_s: float = 90.0

    def __post_init__(self) -> None:
        """Refuse a rule that can decide nothing."""
        fault = next(self._faults(), None)
        if fault is not None:
            raise AnalysisError(fault)

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong with the rule, one sentence each."""
        yield from self._too_many()
        yield from self._bad_levels()
        yield from self._bad_numbers()
        yield from self._bad_interim_analyses()
        yield from self._bad_choices()
        yield from self._bad_price()

    def _bad_levels(self) -> Iterator[str]:
        levels = (*filter(None, (self.baseline,)), *self.treatments)
        for level in levels:
            if level.partition("/")[0].partition(":")[0] not in BIAS_KINDS:
                yield f"the rule names the bias {level!r}; expected one of {', '.join(BIAS_KINDS)}"
        if twice := sorted({level for level in levels if levels.count(level) > 1}):
            yield f"the rule compares {twice[0]!r} with itself; name two bias kinds"
        if any(len(arm) != len(self.sites) for arm in self.arms):
            yield f"the rule has arms that do not fit its {len(self.sites)} sites; an arm is a level per site"

    def _too_many(self) -> Iterator[str]:
        if max(len(self.seeds), len(self.sites), len(self.arms), len(self.treatments)) > MOST:
            yield f"the rule names more than {MOST} seeds, sites, arms or treatments; expected fewer"

    def _bad_numbers(self) -> Iterator[str]:
        if not 0.5 <= self.confidence < 1:
            yield f"the rule's confidence is {self.confidence}; expected 0.5 <= it < 1"
        if not self.price_points_per_percent >= 0:
            yield f"the rule's price is {self.price_points_per_percent} points; expected 0 or more"
        if not self.equivalence_margin > 0:
            yield (
                f"the rule's equivalence_margin is {self.equivalence_margin} points; expected "
                f"above 0: a smaller net gain that may be zero makes no difference"
            )

    def _bad_interim_analyses(self) -> Iterator[str]:
        numbers = self.interim_analyses
        if numbers and (numbers[0] < 1 or list(numbers) != sorted(set(numbers))):
            yield f"the rule's interim_analyses are {numbers}; expected increasing numbers of seeds"
        if numbers and self.seeds and numbers[-1] > len(self.seeds):
            yield (
                f"the rule's last interim analysis comes after {numbers[-1]} seeds, but the rule names "
                f"{len(self.seeds)}"
            )

    def _bad_choices(self) -> Iterator[str]:
        if self.alpha_spending not in ALPHA_SPENDING:
            expected = " or ".join(ALPHA_SPENDING)
            yield f"the rule's alpha_spending is {self.alpha_spending!r}; expected {expected}"
        if self.order_by not in ("", SCREENING):
            yield f"the rule's order_by is {self.order_by!r}; expected {SCREENING!r} or nothing"
        if self.order_by and self.order:
            yield "the rule has an order and an order_by; name one of them"
        if self.order and sorted(self.order) != sorted(self.sites):
            yield "the rule's order does not hold its sites, each once; rank all of them"

    def _bad_price(self) -> Iterator[str]:
        if self.priced_by not in PRICED_BY:
            yield f"the rule is priced by {self.priced_by!r}; expected {' or '.join(PRICED_BY)}"
        weights = self.price_weights
        if set(weights) - set(STEPS) or not all(weight > 0 for weight in weights.values()):
            yield (
                f"the rule's price_of is {self.price_of!r}; expected {' or '.join(STEPS)}, or both with "
                f"weights above 0"
            )
        if not math.isclose(sum(weights.values()), 1.0):
            yield f"the weights of the rule's price_of add up to {sum(weights.values()):g}; expected 1"
        if self.priced_by == "trials" and self.price_of != "training":
            yield "the rule prices inference by trials, which time training steps; use the stopwatch"
        for name in ("price_half_width", "stopwatch_s"):
            if not getattr(self, name) > 0:
                yield f"the rule's {name} is {getattr(self, name)}; expected more than 0"

    @property
    def price_weights(self) -> dict[str, float]:
        """What is priced -> its weight."""
        return {self.price_of: 1.0} if isinstance(self.price_of, str) else dict(self.price_of)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``from_dict`` reads them back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "DecisionRule":
        """Rebuild a rule from ``to_dict``.

        Raises:
            AnalysisError: a field is unknown or of another type, or the rule is of version 0.1.0.
        """
        if FIELDS_OF_OLD_VERSION & set(plain):
            raise AnalysisError(written_by_old_version("the rule"))
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(plain) - set(known)):
            raise AnalysisError(f"a rule has no {', '.join(unknown)}; it has {', '.join(known)}")
        try:
            check_fields(cls, plain, "the rule")
        except JsonError as error:
            raise AnalysisError(str(error)) from error
        return cls(**{key: _frozen(value) for key, value in plain.items()})

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this rule."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Return the rule in words."""
        percent = "\N{NO-BREAK SPACE}%"
        looks = len(self.interim_analyses)
        together = "all layers" + (f" and {looks} looks" if looks > 1 else "")
        return (
            f"A layer pays off if {' or '.join(self.treatments)} instead of {self.baseline} there gains "
            f"more {self.metric} ({self.condition}) than its own price of "
            f"{self.price_points_per_percent:g} points per 1{percent} of {self._priced_in_words(percent)}, "
            f"costs if it gains less, and makes no difference if the net gain is within "
            f"{self.equivalence_margin:g} points of zero, at {100 * self.confidence:g}{percent} confidence "
            f"for {together} together.{self._order_in_words()}"
        )

    def _priced_in_words(self, percent: str) -> str:
        if len(self.price_weights) == 1:
            (step,) = self.price_weights
            return f"the time of {'a training step' if step == 'training' else 'a detection'}"
        shares = (f"{100 * weight:g}{percent} {step}" for step, weight in self.price_weights.items())
        return f"time ({', '.join(shares)})"

    def _order_in_words(self) -> str:
        if not self.order and not self.order_by:
            return ""
        order = "a screening" if self.order_by else f"the order {', '.join(self.order)}"
        return f" Each layer is tested with twice the weight of the next, by {order}."


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
