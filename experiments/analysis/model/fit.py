"""What goes into the linear model, and what comes out of it."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
        error: its standard error.
        low, high: its interval at the rule's confidence, for this pair by itself, points.
    """

    pairs: tuple[tuple[str, str], ...]
    effect: float
    error: float
    low: float = math.nan
    high: float = math.nan


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
