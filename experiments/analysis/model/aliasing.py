"""Which interactions a design can tell from the sites' own effects, and from one another."""

from collections import defaultdict
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable

Array = NDArray[np.float64]
Pairs = dict[tuple[tuple[str, str], ...], Array]
"""Pairs of sites that are aliased with one another -> centred product (trials,)."""


def pair_columns(table: DesignTable, usable: NDArray[np.bool_]) -> Pairs:
    """Return the interactions of two-level sites that the arms can tell from the sites' own effects.

    Returns:
        Pairs of sites that are aliased with one another (their products are equal up to the sign in every
        arm) -> centred product (usable trials,). Pairs aliased with a site itself are left out.
    """
    halves = table.treated[usable] - 0.5
    levels = [site for site, _ in table.terms]
    single = [i for i, site in enumerate(levels) if levels.count(site) == 1]
    groups: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    columns: dict[bytes, Array] = {}
    for i, j in combinations(single, 2):
        column = halves[:, i] * halves[:, j]
        key = (column * np.sign(column[0])).tobytes() if len(column) else b""
        groups[key].append((levels[i], levels[j]))
        columns.setdefault(key, column)
    mixed = {(half * np.sign(half[0]) / 2).tobytes() for half in halves.T} if len(halves) else set()
    constant = {np.full(len(halves), 0.25).tobytes()}
    return {tuple(groups[key]): column for key, column in columns.items() if key not in mixed | constant}


def aliases(table: DesignTable) -> tuple[tuple[str, ...], ...]:
    """Return the effects that the arms cannot tell apart: groups of sites and pairs of sites (``a:b``).

    Sites whose levels are more than two have no pairs here. Empty in a full factorial.
    """
    halves = table.treated - 0.5
    levels = [site for site, _ in table.terms]
    groups: dict[bytes, list[str]] = defaultdict(list)
    single = [i for i, site in enumerate(levels) if levels.count(site) == 1]
    for size in (1, 2):
        for chosen in combinations(single, size):
            column = np.prod(2 * halves[:, chosen], axis=1)
            groups[(column * column[0]).tobytes()].append(":".join(levels[i] for i in chosen))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
