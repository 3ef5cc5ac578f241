"""Which arms a study runs, and which effects these arms can tell apart.

An arm gives every factor (a site) one of its levels. A level is a bias kind (``window``), a bias kind with
its window (``window:8``), or one with an approximate implementation (``window/lowrank@16``). An exact
implementation is not a level, because it does not change the accuracy. Every arm runs with every seed. The
seeds are blocks: within a seed, data order and initial weights are the same for all arms.

The designs: ``full`` (all combinations), ``fraction`` (a chosen part of them), ``one_at_a_time``,
``all_but_one`` and ``listed`` (any arms).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from pipeline.config.plan import Choice, Plan

Arm = tuple[str, ...]
"""A level per factor, in the order of the factors."""

MOST_SEARCHED = 20_000
"""Most sets of generators that are all tried, which takes about a second. With more sets, the first words of
odd length are taken without a search."""


class DesignError(ValueError):
    """A design that cannot be made as asked; the message is one sentence."""


@dataclass(frozen=True)
class Factor:
    """What is varied at one site.

    Attributes:
        site: the attention site.
        levels: its levels, the baseline first.
    """

    site: str
    levels: tuple[str, ...] = ("none", "window")

    def __post_init__(self) -> None:
        """Refuse a factor that does not vary."""
        if len(set(self.levels)) < 2 or len(set(self.levels)) < len(self.levels):
            raise DesignError(
                f"factor {self.site} has the levels {self.levels}; expected two or more, each once"
            )


@dataclass(frozen=True)
class Design:
    """Factors and arms.

    Attributes:
        kind: ``full``, ``fraction``, ``one_at_a_time``, ``all_but_one`` or ``list``.
        factors: what varies.
        arms: what runs with every seed; the baseline everywhere comes first.
        generators: of a fraction: (site, sites whose joint parity sets its level).
    """

    kind: str
    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    generators: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Refuse arms that do not fit the factors."""
        if not self.factors:
            raise DesignError("a design needs a factor; name the sites whose bias varies")
        if len(set(self.sites)) < len(self.sites):
            raise DesignError("a site is in the design twice; name each once")
        if len(set(self.arms)) < len(self.arms):
            raise DesignError("an arm is in the design twice; replicates come from the seeds")
        for arm in self.arms:
            if len(arm) != len(self.factors):
                raise DesignError(f"arm {arm} has {len(arm)} levels for {len(self.factors)} factors")
            for level, factor in zip(arm, self.factors, strict=True):
                if level not in factor.levels:
                    raise DesignError(
                        f"arm {arm} has {level!r} at {factor.site}; its levels are {', '.join(factor.levels)}"
                    )

    @property
    def sites(self) -> tuple[str, ...]:
        """The factors' sites."""
        return tuple(factor.site for factor in self.factors)

    @property
    def baseline(self) -> Arm:
        """The arm with every site at its baseline."""
        return tuple(factor.levels[0] for factor in self.factors)

    @property
    def relation(self) -> tuple[tuple[str, ...], ...]:
        """The defining relation of a fraction: sets of sites whose joint parity never varies."""
        words = [frozenset((site, *others)) for site, others in self.generators]
        return tuple(tuple(s for s in self.sites if s in word) for word in _span(words))

    @property
    def resolution(self) -> int | None:
        """Length of the shortest word of the defining relation; None without one."""
        return min(map(len, self.relation), default=None)


def full(factors: Sequence[Factor]) -> Design:
    """Return all combinations of the levels."""
    return Design("full", tuple(factors), tuple(product(*(factor.levels for factor in factors))))


def fraction(factors: Sequence[Factor], halvings: int) -> Design:
    """Return a 2^(k-p) fraction of the full factorial with the best resolution, IV at least.

    Among generators of the same resolution those with the fewest shortest words are taken (minimum
    aberration in its first place; Box, Hunter and Hunter, Statistics for Experimenters, chapter 6). The
    baseline everywhere is always one of the arms.

    Args:
        factors: k factors of two levels.
        halvings: p; 2^(k-p) arms remain.

    Raises:
        DesignError: a factor has more than two levels, or no fraction of resolution IV is so small.
    """
    factors = tuple(factors)
    if others := [factor.site for factor in factors if len(factor.levels) != 2]:
        raise DesignError(
            f"{', '.join(others)} has more than two levels; a fraction takes two, use a full design or a list"
        )
    base, most = len(factors) - halvings, _most_halvings(len(factors))
    if not most:
        raise DesignError(f"{len(factors)} factors have no fraction of resolution IV; use a full design")
    if halvings < 1 or base < 1 or len(factors) > 2 ** (base - 1):
        raise DesignError(
            f"no fraction of {len(factors)} factors is so small and has resolution IV; expected 1 to {most} "
            f"halvings, got {halvings}"
        )
    words = _best_words(base, halvings)
    bits = [
        (*row, *(sum(row[i] for i in word) % 2 for word in words)) for row in product((0, 1), repeat=base)
    ]
    sites = [factor.site for factor in factors]
    generators = tuple(
        (sites[base + i], tuple(sites[letter] for letter in word)) for i, word in enumerate(words)
    )
    arms = tuple(tuple(f.levels[bit] for f, bit in zip(factors, row, strict=True)) for row in bits)
    return Design("fraction", factors, arms, generators)


def one_at_a_time(factors: Sequence[Factor]) -> Design:
    """Return the baseline everywhere, and arms with one site at another level: every site, every level."""
    baseline = tuple(factor.levels[0] for factor in factors)
    single = (
        (*baseline[:i], level, *baseline[i + 1 :])
        for i, factor in enumerate(factors)
        for level in factor.levels[1:]
    )
    return Design("one_at_a_time", tuple(factors), (baseline, *single))


def all_but_one(factors: Sequence[Factor], level: int = 1) -> Design:
    """Return the baseline everywhere, one level at all sites, and that level at all sites but one.

    Args:
        factors: what varies.
        level: which level, as an index into the levels of every factor.
    """
    baseline = tuple(factor.levels[0] for factor in factors)
    treated = tuple(factor.levels[level] for factor in factors)
    without = ((*treated[:i], baseline[i], *treated[i + 1 :]) for i in range(len(factors)))
    return Design("all_but_one", tuple(factors), tuple(dict.fromkeys((baseline, treated, *without))))


def listed(factors: Sequence[Factor], arms: Iterable[Arm]) -> Design:
    """Return the arms as given."""
    return Design("list", tuple(factors), tuple(arms))


def plan_of(
    design: Design, arm: Arm, rest: Mapping[str, str], impls: str | Mapping[str, str] = "sdpa_math"
) -> Plan:
    """Return the plan of an arm.

    Args:
        design: the design.
        arm: one of its arms.
        rest: choice of every other site pattern, as ``Plan.of`` takes it.
        impls: implementation of levels that name none, or that of each level.

    Raises:
        DesignError: a level has no implementation.
    """
    choices: dict[str, Choice | str] = dict(rest)
    for site, level in zip(design.sites, arm, strict=True):
        choices[site] = level if "/" in level else f"{level}/{_impl_of(level, impls)}"
    return Plan.of(choices)


def _impl_of(level: str, impls: str | Mapping[str, str]) -> str:
    if isinstance(impls, str):
        return impls
    if level not in impls:
        raise DesignError(f"the level {level!r} has no implementation; name it in impls ({', '.join(impls)})")
    return impls[level]


def level_of(choice: Choice) -> str:
    """Return the level of a choice: its bias, and its implementation if that is approximate."""
    return str(choice) if choice.rank is not None else str(choice).partition("/")[0]


def _most_halvings(num_factors: int) -> int:
    return max((p for p in range(1, num_factors) if num_factors <= 2 ** (num_factors - p - 1)), default=0)


def _best_words(base: int, halvings: int) -> tuple[tuple[int, ...], ...]:
    """Return the words of the generators over the base factors, one word per added factor."""
    candidates = [word for size in range(base, 1, -1) for word in combinations(range(base), size)]
    odd_length = [word for word in candidates if len(word) % 2 == 1]
    sets = list(_choose(candidates, halvings)) or [tuple(odd_length[:halvings])]
    best = max(sets, key=lambda words: _quality(words, base))
    return tuple(best)


def _choose(candidates: Sequence[tuple[int, ...]], count: int) -> Iterable[tuple[tuple[int, ...], ...]]:
    chosen = []
    for words in combinations(candidates, count):
        chosen.append(words)
        if len(chosen) > MOST_SEARCHED:
            return ()
    return chosen


def _quality(words: Sequence[tuple[int, ...]], base: int) -> tuple[int, int, bool]:
    """Return resolution, minus the number of shortest words, and whether all sites on is an arm."""
    relation = [frozenset((*word, base + i)) for i, word in enumerate(words)]
    lengths = sorted(map(len, _span(relation)))
    return lengths[0], -lengths.count(lengths[0]), all(len(word) % 2 for word in words)


def _span(words: Sequence[frozenset[object]]) -> list[frozenset[object]]:
    """Return all products of words; a letter that occurs twice in a product cancels."""
    products: list[frozenset[object]] = [frozenset()]
    for word in words:
        products += [word ^ other for other in products]
    return products[1:]
