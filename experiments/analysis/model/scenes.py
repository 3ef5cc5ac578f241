"""The part of the errors that is due to the choice of the validation scenes.

Trials and scenes are crossed. The variance over resamples of the scenes holds the noise of a training per
scene as well, which the residuals hold already. What both hold is what resampling adds to the residual
variance, and is taken off once (two-way clustering: Cameron, Gelbach and Miller, JBES 29, 2011).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.model.fit import Response
from pipeline.evaluation.bootstrap import FEWEST_SCENES

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OverScenes:
    """Covariances of all columns over resamples of the scenes; see ``fit.ErrorParts``."""

    over_scenes: Array
    in_both: Array
    over_scenes_df: float
    in_both_df: float


def over_scenes(matrix: Array, response: Response, usable: NDArray[np.bool_]) -> OverScenes | None:
    """Fit every resample of the scenes; None if there are too few scenes, draws or trials.

    Variances over resamples are enlarged by S / (S - 1): S scenes spread less around their own mean.

    Args:
        matrix: (usable trials, columns) of the model.
        response: what was measured, with its draws.
        usable: (trials,) which trials the matrix has.
    """
    scenes = response.num_scenes
    if scenes < FEWEST_SCENES or not len(response.draws):
        return None
    kept = np.asarray(np.isfinite(response.draws).all(axis=0))[usable]
    rows = matrix[kept]
    if np.linalg.matrix_rank(rows) < rows.shape[1] or len(rows) <= rows.shape[1]:
        return None
    draws = response.draws[:, usable][:, kept]
    inverse = np.linalg.pinv(rows)
    effects = draws @ inverse.T
    residuals = draws - effects @ rows.T
    df = len(rows) - rows.shape[1]
    grown = scenes / (scenes - 1)
    own = grown * residuals.var(axis=0, ddof=1).sum() / df
    of_scenes = 1 / (1 / (scenes - 1) + 1 / (len(draws) - 1))  # few draws blur it, too
    spread = grown * np.atleast_2d(np.cov(effects, rowvar=False))
    return OverScenes(np.asarray(spread), np.asarray(own * inverse @ inverse.T), of_scenes, float(df))
