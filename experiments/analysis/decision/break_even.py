"""Up to which price a bias pays: points that one per cent of slow-down may cost.

A rule states a price, and others may have another opinion. The break-even rate is gain / slow-down. Its
bounds are Fieller's (JRSS B 16, 1954), read as a decision: below ``low`` the net gain is certainly above
zero, above ``high`` it is certainly below.
"""

import math
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A number with its error.

    Attributes:
        value: the number.
        error: its standard error.
        df: degrees of freedom of the error.
    """

    value: float
    error: float
    df: float


@dataclass(frozen=True)
class BreakEven:
    """Points per per cent of slow-down.

    Attributes:
        rate: at which gain and price are equal: 0 if it gains nothing, infinite if it gains and slows
            nothing down, NaN if it gains nothing and slows nothing down.
        low: up to this rate it pays, certainly; 0 if at none.
        high: beyond this rate it costs, certainly; infinite if no rate is high enough.
    """

    rate: float
    low: float
    high: float


def break_even(gain: Estimate, slowdown: Estimate, confidence: float) -> BreakEven:
    """Return the break-even rate with its interval.

    Args:
        gain: points.
        slowdown: per cent, independent of the gain.
        confidence: of the interval by itself.
    """
    spread = gain.error**4 / gain.df + slowdown.error**4 / slowdown.df
    total = gain.error**2 + slowdown.error**2
    df = total**2 / spread if spread > 0 else min(gain.df, slowdown.df)
    square = float(stdtrit(df, (1 + confidence) / 2)) ** 2
    a = slowdown.value**2 - square * slowdown.error**2
    b = gain.value * slowdown.value
    c = gain.value**2 - square * gain.error**2
    inside = b * b - a * c  # a r^2 - 2 b r + c is negative where zero net gain is not excluded
    roots = _roots(a, b, c, inside)
    beyond = [root for root in roots if root > 0]
    slows = slowdown.value > 0 and a > 0
    high = max(beyond, default=0.0) if slows else math.inf
    low = min(beyond, default=math.inf) if gain.value > 0 and c > 0 else 0.0
    return BreakEven(_rate(gain.value, slowdown.value), low, high)


def _rate(gain: float, slowdown: float) -> float:
    if slowdown > 0:
        return max(gain, 0.0) / slowdown
    return math.inf if gain > 0 else math.nan


def _roots(a: float, b: float, c: float, inside: float) -> list[float]:
    if a == 0:
        return [c / (2 * b)] if b else []
    if inside < 0:
        return []
    return [(b - math.sqrt(inside)) / a, (b + math.sqrt(inside)) / a]
