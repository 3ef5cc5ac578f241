"""How the error probability of a study is shared by its claims and looks.

A site's net gain has three possible claims: it PAYS, it COSTS, it makes NO DIFFERENCE. They share one error
probability. No site can have the truth 0 and a truth beyond the margin at once, so a false PAYS or COSTS of
one site and a false NO DIFFERENCE of the same site never add up. What adds up is the sites:

* NO DIFFERENCE is tested at the site's equal share of the level, half of it to each side: the interval at
  that level lies within the margin.
* PAYS and COSTS are tested step by step (Holm, Scand. J. Stat. 6, 1979). A site that is settled so leaves
  half of its share to the others; the other half pays for its NO DIFFERENCE, which had a chance to be false.

Let n of k sites have the truth 0. Each settled truly, the k - n others leave n sites the level
1 - (k - n) / 2k, and their own false NO DIFFERENCE has at most (k - n) / 2k: together 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from experiments.analysis.alpha_spending import nominal_level, spent
from experiments.analysis.design_table import DesignTable
from experiments.recipes.decision_rule import DecisionRule

Array = NDArray[np.float64]


def joint_quantile(df: Array, table: DesignTable, rule: DecisionRule) -> Array:
    """Return Student's quantiles (terms,) at which all terms' intervals hold together, at every look."""
    return np.asarray(-stdtrit(df, equal_share(table, rule) / 2))


def single_quantile(df: Array, table: DesignTable, rule: DecisionRule) -> Array:
    """Return Student's quantiles (terms,) at which one interval by itself holds, at every look."""
    return np.asarray(-stdtrit(df, at_look(1 - rule.confidence, table, rule) / 2))


def equal_share(table: DesignTable, rule: DecisionRule) -> float:
    """Return a term's share of the error probability at this look, both sides together."""
    return at_look((1 - rule.confidence) / len(table.terms), table, rule)


def difference_levels(p_values: Array, weights: Array, table: DesignTable, rule: DecisionRule) -> Array:
    """Return the level at which each p-value of "no net gain" is tested at this look.

    A p-value is rejected if it is at most its level. The smallest ``p / weight`` is tested first, at its
    share of the level among all; each rejection leaves half of a term's equal share to the others (with
    looks: Ye, Li, Liu and Yao, Stat. Med. 32, 2013).

    Args:
        p_values: (terms,) two-sided p-values.
        weights: (terms,) positive.
        table: gives the look.
        rule: gives confidence and spending.
    """
    levels = np.empty(len(p_values))
    left = np.argsort(p_values / weights, kind="stable")
    while len(left):
        settled = len(p_values) - len(left)
        level = (1 - rule.confidence) * (1 - settled / (2 * len(p_values)))
        shares = weights[left] / weights[left].sum()
        at = [at_look(level * float(share), table, rule) for share in shares]
        levels[left] = at
        if p_values[left[0]] > at[0]:
            break
        left = left[1:]
    return levels


def at_look(level: float, table: DesignTable, rule: DecisionRule) -> float:
    """Return what this look may use of a two-sided error probability."""
    # rounded: levels that differ in the last bit share one integration
    return nominal_level(round(level, 12), table.interim_analyses, table.look, rule.alpha_spending)


def shares_spent(interim_analyses: Sequence[int], taken: int, rule: DecisionRule) -> float:
    """Return the share of the error probability that the looks taken have spent, 0 to 1.

    Args:
        interim_analyses: numbers of seeds of all planned looks.
        taken: how many of them were taken.
        rule: its confidence and spending.
    """
    level = 1 - rule.confidence
    return (
        spent(level, interim_analyses[taken - 1] / interim_analyses[-1], rule.alpha_spending) / level
        if taken
        else 0.0
    )
