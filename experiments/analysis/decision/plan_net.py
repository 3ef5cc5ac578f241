"""What whole plans gain, cost and net against no bias anywhere, with the covariance of everything.

A plan's gain is the sum of its sites' effects and of its pairs' interactions; its slow-down is
``exp(fixed + sum of own prices) - 1``, with the fixed price, because any bias needs AQR and the generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri, stdtrit

from experiments.analysis.decision.levels import at_look
from experiments.analysis.decision.net_gain import welch_satterthwaite
from experiments.analysis.decision.shrinkage import shrink
from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.fit import Fit, contrast
from experiments.analysis.price_model import Price, price_columns
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Arm

Array = NDArray[np.float64]

DRAWS = 20_000
"""Draws for the quantile of the largest of all plans; it is then right to about 0.02."""
MOST_DRAWN = 1024
"""With more plans the quantile is Scheffé's, which does not depend on their number."""


@dataclass(frozen=True)
class PlanNets:
    """Predictions about plans, against the baseline everywhere.

    Attributes:
        levels: a level per site, for every plan.
        gain, gain_error, gain_df: (plans,) points.
        shrunk: (plans,) the gain that is to be expected, effects shrunk (``decision.shrinkage``).
        slowdown, slowdown_error, slowdown_df: (plans,) growth of the step time, per cent.
        price: (plans,) points.
        net, error, df: (plans,) gain minus price, points.
        gradient: (plans, coefficients) of the net, gains' coefficients first, scaled so that their noises
            are independent with a variance of one.
    """

    levels: tuple[Arm, ...]
    gain: Array
    gain_error: Array
    gain_df: Array
    shrunk: Array
    slowdown: Array
    slowdown_error: Array
    slowdown_df: Array
    price: Array
    net: Array
    error: Array
    df: Array
    gradient: Array

    @cached_property
    def biased(self) -> NDArray[np.bool_]:
        """(plans,) whether a plan has any bias; only such a plan can differ from no bias."""
        return np.asarray(np.abs(self.gradient).sum(axis=1) > 0)


def predict_plans(
    plans: Sequence[Arm], table: DesignTable, gain: Fit, price: Price, rule: DecisionRule
) -> PlanNets:
    """Predict what plans gain and cost.

    If the design cannot tell the interactions of two pairs apart, neither counts.

    Args:
        plans: a level per site each.
        table: the design.
        gain: effects on the rule's metric, points.
        price: growth of the logarithm of the step time.
        rule: gives points per per cent.
    """
    where = {site: index for index, site in enumerate(table.sites)}
    treated = np.array([[plan[where[s]] == level for s, level in table.terms] for plan in plans], dtype=float)
    products = _pair_weights(plans, table, gain)
    gains = [contrast(gain, mains, pairs) for mains, pairs in zip(treated, products, strict=True)]
    value, error, df = (
        np.array(column) for column in zip(*((g.value, g.error, g.df) for g in gains), strict=True)
    )
    effects, covariance = _coefficients(gain)
    weights = np.hstack([treated, products])
    count = len(table.terms)
    own = shrink(effects[:count], covariance[:count, :count])
    pairs = shrink(effects[count:], covariance[count:, count:])
    columns = price_columns(treated, price.pairs)
    rate = rule.price_points_per_percent
    growth = np.exp(columns @ price.effect)
    slow_error = 100 * growth * np.sqrt(np.einsum("pi,ij,pj->p", columns, price.covariance, columns))
    slow_df = np.full(len(plans), price.df)
    steep = -100 * rate * growth[:, None] * columns
    return PlanNets(
        levels=tuple(plans),
        gain=value,
        gain_error=error,
        gain_df=df,
        shrunk=weights @ np.concatenate([own, pairs]),
        slowdown=100 * (growth - 1),
        slowdown_error=slow_error,
        slowdown_df=slow_df,
        price=100 * rate * (growth - 1),
        net=value - 100 * rate * (growth - 1),
        error=np.hypot(error, rate * slow_error),
        df=welch_satterthwaite(error**2, df, (rate * slow_error) ** 2, slow_df),
        gradient=np.hstack([weights @ _root(covariance), steep @ _root(price.covariance)]),
    )


def joint_plan_quantile(nets: PlanNets, table: DesignTable, rule: DecisionRule) -> float:
    """Return the quantile at which no plan's lower bound is above its true net gain, at every look.

    Half of the error probability is for "this plan pays", the other half for "no bias wins".

    Args:
        nets: all plans that could be recommended.
        table: gives the look.
        rule: gives the confidence.
    """
    level = at_look(1 - rule.confidence, table, rule) / 2
    sure = nets.biased & (nets.error > 0)
    if not sure.any():
        return 0.0
    df = float(nets.df[sure].min())
    scaled = nets.gradient[sure] / np.linalg.norm(nets.gradient[sure], axis=1, keepdims=True)
    if len(scaled) > MOST_DRAWN:
        free = int(np.linalg.matrix_rank(scaled))
        return float(np.sqrt(free * fdtri(free, df, 1 - 2 * level)))
    rng = np.random.default_rng(0)  # the same rows give the same verdict
    largest = (_normal(scaled.shape[1]) @ scaled.T).max(axis=1) / np.sqrt(rng.chisquare(df, DRAWS) / df)
    return float(max(np.quantile(largest, 1 - level), -stdtrit(df, level)))


@lru_cache(maxsize=4)
def _normal(columns: int) -> Array:
    return np.random.default_rng(1).standard_normal((DRAWS, columns))


def no_bias_wins(nets: PlanNets, table: DesignTable, rule: DecisionRule) -> bool:
    """Return whether every biased plan certainly nets less than nothing.

    The claim is wrong only if the best plan truly nets something, and then that plan's own bound must have
    failed: every plan is tested at the whole (half) level.
    """
    level = at_look(1 - rule.confidence, table, rule) / 2
    highest = nets.net - stdtrit(nets.df, level) * nets.error
    return bool(nets.biased.any() and (highest[nets.biased] < 0).all())


def _pair_weights(plans: Sequence[Arm], table: DesignTable, gain: Fit) -> Array:
    """Return (plans, interactions): the centred product of both sites, less what it is without any bias."""
    halves = [
        {s: (0.5 if at != table.baseline else -0.5) for s, at in zip(table.sites, p, strict=True)}
        for p in plans
    ]
    cells = [
        [
            half[p.pairs[0][0]] * half[p.pairs[0][1]] - 0.25 if len(p.pairs) == 1 else 0.0
            for p in gain.interactions
        ]
        for half in halves
    ]
    return np.array(cells, dtype=float).reshape(len(plans), len(gain.interactions))


def _coefficients(gain: Fit) -> tuple[Array, Array]:
    """Return the gains' coefficients, interactions last, and their covariance."""
    effects = np.concatenate([gain.effect, [pair.effect for pair in gain.interactions]])
    if gain.parts is None:
        errors = np.concatenate([gain.error, [pair.error for pair in gain.interactions]])
        return effects, np.diag(errors**2)
    scenes = gain.parts.over_scenes - gain.parts.in_both
    present = (np.diag(scenes) > 0).astype(float)
    return effects, gain.parts.runs + scenes * np.outer(present, present)


def _root(covariance: Array) -> Array:
    """Return a matrix whose product with its transpose is the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
