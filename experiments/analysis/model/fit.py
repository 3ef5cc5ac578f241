"""What goes into the linear model, and what comes out of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.model.mean_squares import MeanSquares

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """One metric under one condition, points (or any unit); columns are the trials of a table.

    Attributes:
        values: (trials,) final values; NaN for a trial that diverged or was stopped.
        draws: (draws, trials) the same on resamples of the scenes; no rows if there are none.
        num_scenes: how many scenes were resampled.
        early_values: (steps, trials) values after the steps at which trials were stopped, earliest first. NaN
            after a stop, so that a trial stopped at the first of these steps has only that value.
    """

    values: Array
    draws: Array = field(default_factory=lambda: np.empty((0, 0)))
    num_scenes: int = 0
    early_values: Array = field(default_factory=lambda: np.empty((0, 0)))


@dataclass(frozen=True)
class Interaction:
    """The gain of two sites together beyond the sum of their gains.

    Attributes:
        pairs: the pairs of sites that the design cannot tell apart; one pair if it can.
        effect: gain of one site with the other treated minus without, points.
        error: its standard error, without the scenes' part.
        low, high: its interval at the rule's confidence, for this pair by itself, points.
        df: degrees of freedom of the error.
    """

    pairs: tuple[tuple[str, str], ...]
    effect: float
    error: float
    low: float = math.nan
    high: float = math.nan
    df: float = math.nan


@dataclass(frozen=True)
class ErrorParts:
    """What the coefficients' squared errors are made of; coefficients are the terms, then the interactions.

    Attributes:
        runs: (coefficients, coefficients) covariance by the noise of trainings.
        runs_df: (coefficients,) its degrees of freedom.
        over_scenes: (coefficients, coefficients) covariance over resamples of the scenes.
        in_both: the part of ``over_scenes`` that is a training's own noise per scene, which ``runs`` has too.
        over_scenes_df, in_both_df: their degrees of freedom.
    """

    runs: Array
    runs_df: Array
    over_scenes: Array
    in_both: Array
    over_scenes_df: float = math.inf
    in_both_df: float = math.inf

    def of(self, weights: Array) -> tuple[float, float, float]:
        """Return the runs' and the scenes' part of a weighted sum's squared error, and its df.

        Degrees of freedom are Satterthwaite's. The runs' are the fewest of the coefficients in the sum.

        Args:
            weights: (coefficients,).
        """
        runs = float(weights @ self.runs @ weights)
        over = float(weights @ self.over_scenes @ weights)
        both = float(weights @ self.in_both @ weights)
        runs_df = float(self.runs_df[weights != 0].min(initial=math.inf))
        scenes = max(over - both, 0.0)
        if not scenes:
            return runs, 0.0, runs_df
        spread = runs**2 / runs_df + over**2 / self.over_scenes_df + both**2 / self.in_both_df
        return runs, scenes, (runs + scenes) ** 2 / spread


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of coefficients, for example what a plan gains.

    Attributes:
        value: the sum, in the unit of the response.
        error: its standard error, scenes included.
        df: degrees of freedom of the error.
    """

    value: float
    error: float
    df: float


@dataclass(frozen=True)
class Fit:
    """Coefficients of the terms in the linear model.

    Attributes:
        effect: (terms,) in the unit of the response, averaged over the other sites.
        error: (terms,) standard errors, scenes included.
        df: (terms,) degrees of freedom of the errors (Satterthwaite).
        residual_df: degrees of freedom of the noise of a training.
        noise: standard deviation of one trial.
        num_trials: how many trials were fitted.
        scene_share: (terms,) share of the squared error that is due to the choice of scenes.
        num_scenes: scenes that were resampled; 0 if they were not.
        interactions: those the design supports.
        collapsed: trials that were left out because they are far below what the other trials predict.
        carried: (site, level) of which all trials were stopped: what they gain at the end is taken from
            what they gained by then.
        parts: what the squared errors are made of, interactions included; None if only ``error`` is known.
        mean_squares: the noise by source; None if the noise was not estimated from trials.
    """

    effect: Array
    error: Array
    df: Array
    residual_df: int
    noise: float
    num_trials: int
    scene_share: Array
    num_scenes: int = 0
    interactions: tuple[Interaction, ...] = ()
    collapsed: tuple[str, ...] = ()
    carried: tuple[tuple[str, str], ...] = ()
    parts: ErrorParts | None = None
    mean_squares: MeanSquares | None = None

    @property
    def runs(self) -> Array:
        """(terms,) the part of the squared error that is the noise of trainings."""
        return self.error**2 * (1 - self.scene_share)

    @property
    def scenes(self) -> Array:
        """(terms,) the part of the squared error that is the choice of scenes."""
        return self.error**2 * self.scene_share

    @property
    def covariance(self) -> Array:
        """(terms, terms) of the effects, scenes included; the squares of ``error`` are its diagonal."""
        if self.parts is None:
            return np.diag(self.error**2)
        kept = slice(0, len(self.effect))
        scenes = (self.parts.over_scenes - self.parts.in_both)[kept, kept]
        present = (np.diag(scenes) > 0).astype(float)  # a variance cannot be negative
        return np.asarray(self.parts.runs[kept, kept] + scenes * np.outer(present, present))


def contrast(fit: Fit, mains: Sequence[float] | Array, pairs: Sequence[float] | Array = ()) -> Contrast:
    """Return a weighted sum of effects and interactions with its error.

    The gain of one plan over another is such a sum. Its weights are the differences of ``treated - 1/2``
    per term and of the products of both sites' ``treated - 1/2`` per interaction.

    Args:
        fit: the fit.
        mains: (terms,) weights of the effects.
        pairs: (interactions,) weights of the interactions; none stands for zeros.
    """
    given = np.asarray(pairs, dtype=float)
    weights = np.concatenate([mains, given if len(given) else np.zeros(len(fit.interactions))])
    values = np.concatenate([fit.effect, [pair.effect for pair in fit.interactions]])
    errors = [pair.error for pair in fit.interactions]
    parts = fit.parts or ErrorParts(
        np.diag(np.concatenate([fit.error, errors]) ** 2),
        np.concatenate([fit.df, [pair.df for pair in fit.interactions]]),
        np.zeros((len(weights), len(weights))),
        np.zeros((len(weights), len(weights))),
    )
    runs, scenes, df = parts.of(weights)
    return Contrast(float(weights @ values), math.sqrt(runs + scenes), df)
