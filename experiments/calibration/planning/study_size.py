"""What a study would run: its arms, its seeds, and what they leave to estimate the noise from."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.fit import Response
from experiments.analysis.model.linear_model import fit_sites
from experiments.analysis.model.robust_errors import unbalanced
from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm, Design, DesignError, Factor, fraction, full, one_at_a_time
from experiments.recipes.recipe import Recipe, RecipeError

KINDS = {"full": "full grid", "one_at_a_time": "one at a time", "fraction": "fraction"}
"""Kind of a design -> its name in tables."""
MOST_TRIALS = 128
"""More seeds are offered up to so many trials."""
LARGEST_FULL = 6
"""A full factorial of more sites is not offered: over 64 trainings a seed."""


@dataclass(frozen=True)
class StudySize:
    """A design with a number of seeds.

    Attributes:
        design: its kind, for tables.
        rule: names the sites and levels.
        arms: what runs with every seed.
        interim_analyses: numbers of seeds after which it is judged.
    """

    design: str
    rule: DecisionRule
    arms: tuple[Arm, ...]
    interim_analyses: tuple[int, ...]

    @property
    def seeds(self) -> int:
        """Seeds at the last look."""
        return self.interim_analyses[-1]

    @property
    def trials(self) -> int:
        """Trials at the last look."""
        return self.seeds * len(self.arms)

    @property
    def num_terms(self) -> int:
        """Sites times treatments."""
        return len(self.table.terms)

    @cached_property
    def table(self) -> DesignTable:
        """The design as it would be judged at the last look."""
        trials = tuple(
            TrialRow(f"{i}-{seed}", seed, arm)
            for i, arm in enumerate(self.arms)
            for seed in range(self.seeds)
        )
        return DesignTable(
            self.rule.sites,
            trials,
            (),
            self.rule.baseline,
            self.rule.treatments,
            look=len(self.interim_analyses),
            interim_analyses=self.interim_analyses,
        )

    @cached_property
    def variance_factor(self) -> float:
        """Squared error of the worst estimated effect, in squared noises of one trial."""
        inverse = np.linalg.pinv(self._matrix)
        return float((inverse[: self.num_terms] ** 2).sum(axis=1).max())

    @property
    def tells_sites_apart(self) -> bool:
        """Whether the arms can tell the effects of all sites apart."""
        return int(np.linalg.matrix_rank(self._matrix)) == self._matrix.shape[1]

    @property
    def residual_df(self) -> int:
        """Degrees of freedom of the noise; 0 if the trials cannot be judged."""
        return int(sum(self.freedom))

    @cached_property
    def freedom(self) -> tuple[float, float]:
        """Degrees of freedom of seed by site, and of the rest; read off a fit, for the design decides them.

        (0, 0) if the trials cannot be judged. Of unbalanced arms, whose noises are not pooled, the second
        holds those of the least certain site.
        """
        values = np.random.default_rng(0).standard_normal(len(self.table.trials))
        try:
            fit = fit_sites(Response(values), self.table)
        except AnalysisError:
            return 0.0, 0.0
        if unbalanced(self.table):
            return 0.0, float(fit.df.min())
        squares = fit.mean_squares
        return (0.0, 0.0) if squares is None else (float(squares.seed_by_site_df), float(squares.rest_df))

    @cached_property
    def _matrix(self) -> NDArray[np.float64]:
        return np.hstack([self.table.treated, self.table.blocks])


def size_of(recipe: Recipe) -> StudySize:
    """Return the size of a recipe's study, taken to its last look.

    Raises:
        RecipeError: the recipe has no rule.
    """
    if recipe.rule is None:
        raise RecipeError(f"recipe {recipe.name} has no rule, so it compares nothing; choose one that does")
    rule = replace(recipe.rule, sites=recipe.sites)
    seeds = rule.seeds or tuple(sorted({settings.seed for settings in recipe.trials}))
    arms = tuple(dict.fromkeys(arm for arm, _ in recipe.by_arm()))
    looks = rule.interim_analyses or (len(seeds),)
    return StudySize(_kind(arms, rule), rule, arms, looks)


def other_seeds(size: StudySize) -> tuple[StudySize, ...]:
    """Return the same design with half, twice and four times as many seeds, judged once at the end."""
    wanted = {max(1, size.seeds // 2), 2 * size.seeds, 4 * size.seeds} - {size.seeds}
    most = max(MOST_TRIALS, size.trials)
    counts = sorted(count for count in wanted if count * len(size.arms) <= most)
    return tuple(replace(size, interim_analyses=(count,)) for count in counts)


def other_designs(size: StudySize) -> tuple[StudySize, ...]:
    """Return other designs of the same sites, each with as many seeds as give at least as many trials."""
    rule = size.rule
    factors = [Factor(site, (rule.baseline, *rule.treatments)) for site in rule.sites]
    designs = [one_at_a_time(factors)] if len(factors) > 1 else []
    if len(factors) <= LARGEST_FULL:
        designs.append(full(factors))
    designs += _fractions(factors)
    others = {frozenset(design.arms): design for design in designs if set(design.arms) != set(size.arms)}
    return tuple(
        StudySize(KINDS[design.kind], rule, design.arms, (-(-size.trials // len(design.arms)),))
        for design in others.values()
    )


def _fractions(factors: list[Factor]) -> list[Design]:
    """Return the fractions of resolution IV, the largest first."""
    found = []
    for halvings in range(1, len(factors)):
        try:
            found.append(fraction(factors, halvings))
        except DesignError:  # more than two levels, or so few arms have no resolution IV
            break
    return found


def _kind(arms: tuple[Arm, ...], rule: DecisionRule) -> str:
    """Name the arms after their design."""
    factors = [Factor(site, (rule.baseline, *rule.treatments)) for site in rule.sites]
    made = [full(factors), one_at_a_time(factors), *_fractions(factors)]
    return next((KINDS[design.kind] for design in made if set(design.arms) == set(arms)), "its own arms")
