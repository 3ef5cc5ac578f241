"""The rule of a study: what is measured, against what price, how sure a verdict must be.

Written in the recipe before the first trial runs; its digest is part of the recipe's, which
every row carries. Plain values, so that JSON holds it and anybody can read it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from operators.spec import BIAS_KINDS


class DecideError(ValueError):
    """Rows or a rule from which no verdict can be drawn; the message is one sentence."""


@dataclass(frozen=True)
class Rule:
    """How rows become verdicts.

    A site PAYS if its gain in ``metric`` (treatment minus baseline, in points: 100 times the
    fraction) is above its price, COSTS if it is below, with the given confidence, and is
    UNDECIDED otherwise. Its price is its slow-down times ``price_points_per_percent``.

    Attributes:
        metric: a metric in the unit ``fraction`` (``NDS``, ``mAP``).
        condition: sensor condition the verdict is about.
        treatment: bias kind whose worth is asked.
        baseline: bias kind it is compared with.
        sites: the factors; empty reads them from the plans (every site whose bias varies).
        seeds: the blocks; empty reads them from the rows. A study that names its sites and
            seeds notices when all trials of one of them are missing.
        price_metric: time per training step, in any unit (a ratio is taken).
        price_points_per_percent: points of ``metric`` that one per cent of slow-down must earn.
        confidence: that all intervals of one condition cover the truth together.
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

    def __post_init__(self) -> None:
        """Refuse a rule that can decide nothing."""
        for kind in (self.treatment, self.baseline):
            if kind not in BIAS_KINDS:
                raise DecideError(
                    f"the rule names the bias {kind!r}; expected one of {', '.join(BIAS_KINDS)}"
                )
        if self.treatment == self.baseline:
            raise DecideError(f"the rule compares {self.treatment!r} with itself; name two bias kinds")
        if not 0.5 <= self.confidence < 1:
            raise DecideError(f"the rule's confidence is {self.confidence}; expected 0.5 <= it < 1")
        if self.price_points_per_percent < 0:
            raise DecideError(
                f"the rule's price is {self.price_points_per_percent} points; expected 0 or more"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; ``from_dict`` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Rule":
        """Rebuild a rule from ``to_dict``; refuse a key that no rule has."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(plain) - set(known)):
            raise DecideError(f"a rule has no {', '.join(unknown)}; it has {', '.join(known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this rule."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Say the rule in words."""
        percent = "\N{NO-BREAK SPACE}%"
        return (
            f"A layer pays off if {self.treatment} instead of {self.baseline} there gains more {self.metric} "
            f"({self.condition}) than its price of {self.price_points_per_percent:g} points per "
            f"1{percent} of step time, and costs if it gains less, at {100 * self.confidence:g}{percent} "
            f"confidence for all layers together."
        )
