"""The effect of every site from one linear model over all trials, with a block per seed.

Three sources of uncertainty meet in an interval: the noise of a training (residuals), the choice of the
validation scenes (the metric recomputed on resamples of them, the same for all trials), and trials that
were stopped early (``experiments.analysis.model.censoring``). Pairwise interactions join the model where the
design and the number of trials support them; otherwise they are part of its noise.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.aliasing import pair_columns
from experiments.analysis.model.censoring import Stage, regress_stages
from experiments.analysis.model.fit import Fit, Interaction, Response
from experiments.recipes.decision_rule import AnalysisError
from pipeline.evaluation.bootstrap import FEWEST_SCENES

Array = NDArray[np.float64]

LEAST_DF = 12
"""Interactions are estimated if this many degrees of freedom stay for the noise: below, the growth of
Student's quantile costs more than the noise of usual interactions. Six sites in 16 arms have 17 after two
seeds: of effects of twice the noise one in a hundred is missed for it, and interactions do no harm."""
COLLAPSED = 0.001
"""A trial has collapsed if the lowest of all would be as low by chance with less than this probability. It is
left out like a diverged one, and named. Normal noise costs a trial in one study of a thousand."""
FULL_LEVERAGE = 1e-9
"""A leverage this near to one leaves no residual to judge by; rounding errors are far smaller."""


def fit_gain(response: Response, table: DesignTable) -> Fit:
    """Fit an accuracy: ``fit_sites`` without trials whose training collapsed to a finite, useless value.

    One such trial among 32 would be larger than the noise of all others. Its studentised residual shows it
    (Bonferroni over the trials; Cook and Weisberg, Residuals and Influence in Regression, 1982).

    Raises:
        AnalysisError: see ``fit_sites``.
    """
    collapsed: list[str] = []
    fit = fit_sites(response, table)
    while (worst := _collapsed(response, table)) is not None:
        response = _without(response, worst)
        collapsed.append(table.trials[worst].name)
        fit = fit_sites(response, table)
    return replace(fit, collapsed=tuple(collapsed))


def fit_sites(response: Response, table: DesignTable) -> Fit:
    """Fit ``value ~ seed block + sites (+ pairs of sites)`` by least squares.

    Args:
        response: the values; a trial without any value is left out.
        table: the design.

    Raises:
        AnalysisError: the remaining trials cannot tell the sites apart, or leave no noise to judge by.
    """
    first = response.early_values[0] if len(response.early_values) else response.values
    usable = np.isfinite(first) | np.isfinite(response.values)
    mains = table.treated[usable]
    blocks = table.blocks[usable]
    blocks = blocks[:, blocks.any(axis=0)]
    matrix = np.hstack([mains, blocks])
    _refuse_unestimable(matrix, blocks.shape[1], table)
    pairs = pair_columns(table, usable)
    wider = np.hstack([matrix, *(column[:, None] for column in pairs.values())])
    ended = wider[np.isfinite(response.values[usable])]  # the others have early values only
    df = len(ended) - ended.shape[1] - len(response.early_values)
    if df < LEAST_DF or np.linalg.matrix_rank(ended) < ended.shape[1]:
        pairs, wider = {}, matrix
    num_terms = mains.shape[1]
    runs = _regress(wider, response, usable, table)
    scenes, joint_df = _scene_variance(wider, response, usable, runs, num_terms)
    of_terms = slice(0, num_terms)
    variance = np.diag(runs.covariance)[of_terms] + scenes
    at = num_terms + blocks.shape[1]
    errors = np.sqrt(np.diag(runs.covariance))
    interactions = tuple(
        Interaction(names, float(runs.effect[at + i]), float(errors[at + i])) for i, names in enumerate(pairs)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(variance > 0, scenes / variance, 0.0)
    return Fit(
        runs.effect[of_terms],
        np.sqrt(variance),
        joint_df,
        runs.df,
        runs.noise,
        int(usable.sum()),
        share,
        response.num_scenes if len(response.draws) else 0,
        interactions,
        carried=tuple(term for index, term in enumerate(table.terms) if index in runs.carried),
    )


def _without(response: Response, trial: int) -> Response:
    values, draws, early = response.values.copy(), response.draws.copy(), response.early_values.copy()
    for measured in (values, draws, early):
        measured[..., trial : trial + 1] = np.nan  # a slice: there may be no draws and no early values
    return replace(response, values=values, draws=draws, early_values=early)


def _collapsed(response: Response, table: DesignTable) -> int | None:
    """Return the index of the lowest trial that ended, if it has collapsed."""
    ended = np.isfinite(response.values)
    matrix = orthonormal(np.hstack([table.treated[ended], table.blocks[ended]]))
    df = len(matrix) - matrix.shape[1] - 1
    if df < 1:
        return None
    scores = studentized(response.values[ended], matrix, df)
    lowest = int(scores.argmin())
    if stdtr(df, scores[lowest]) * len(scores) >= COLLAPSED:
        return None
    return int(np.flatnonzero(ended)[lowest])


def studentized(values: Array, matrix: Array, df: int) -> Array:
    """Return externally studentised residuals (trials,): Student's t with ``df`` degrees of freedom.

    They follow from the internal ones (Cook and Weisberg, equation 2.2.8). A residual is 0 for a trial that
    alone decides a coefficient, and for one without which the model fits perfectly.

    Args:
        values: (trials,) of the metric.
        matrix: (trials, columns) with orthonormal columns, which span the design.
        df: trials - columns - 1.
    """
    residuals = values - matrix @ (matrix.T @ values)
    leverage = (matrix**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        internal = residuals / np.sqrt((residuals @ residuals) / (df + 1) * (1 - leverage))
        scores = internal * np.sqrt(df / (df + 1 - internal**2))
    return np.where(np.isfinite(scores) & (leverage < 1 - FULL_LEVERAGE), scores, 0.0)


def orthonormal(matrix: Array) -> Array:
    """Return orthonormal columns that span those of a matrix, whose rank early stopping may have lowered."""
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    least = sizes.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps
    return np.asarray(left[:, sizes > least])


def _refuse_unestimable(matrix: Array, num_blocks: int, table: DesignTable) -> None:
    sites = ", ".join(table.sites)
    if not len(matrix) or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        raise AnalysisError(
            f"the {len(matrix)} usable trials of {len(table.trials)} cannot tell the effects of "
            f"{sites} apart; run the missing or diverged trials again"
        )
    if len(matrix) - matrix.shape[1] < 1:
        raise AnalysisError(
            f"{len(matrix)} trials for {len(table.terms)} sites and {num_blocks} seeds leave no degree "
            f"of freedom to estimate the noise; add a seed"
        )


def _regress(matrix: Array, response: Response, usable: NDArray[np.bool_], table: DesignTable) -> Stage:
    values = response.values[usable]
    early = () if np.isfinite(values).all() else response.early_values[:, usable]
    return regress_stages(matrix, [*early, values])


def _scene_variance(
    matrix: Array, response: Response, usable: NDArray[np.bool_], runs: Stage, num_terms: int
) -> tuple[Array, Array]:
    """Return (terms,) the variance that the scenes add, and (terms,) the degrees of freedom of the sum.

    Trials and scenes are crossed. The variance over resamples of the scenes holds the noise of a training
    per scene as well, which the residuals hold already; the part that both hold is what resampling adds
    to the residual variance, and is taken off (two-way clustering: Cameron, Gelbach and Miller, JBES 29,
    2011). Variances over resamples are enlarged by S / (S - 1): S scenes spread less around their own mean.
    """
    own = np.diag(runs.covariance)[:num_terms]
    plain = np.full(num_terms, float(runs.df))
    if response.num_scenes < FEWEST_SCENES or not len(response.draws):
        return np.zeros(num_terms), plain
    kept = np.asarray(np.isfinite(response.draws).all(axis=0))[usable]
    rows = matrix[kept]
    if np.linalg.matrix_rank(rows) < rows.shape[1] or len(rows) <= rows.shape[1]:
        return np.zeros(num_terms), plain
    draws = response.draws[:, usable][:, kept]
    inverse = np.linalg.pinv(rows)
    effects = draws @ inverse.T
    residuals = draws - effects @ rows.T
    df = len(rows) - rows.shape[1]
    leverage = (inverse**2).sum(axis=1)[:num_terms]
    of_scenes = 1 / (1 / (response.num_scenes - 1) + 1 / (len(draws) - 1))  # few draws blur it, too
    grown = response.num_scenes / (response.num_scenes - 1)
    over_scenes = grown * effects[:, :num_terms].var(axis=0, ddof=1)
    in_both = grown * residuals.var(axis=0, ddof=1).sum() / df * leverage
    added = np.maximum(over_scenes - in_both, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        joint = (own + added) ** 2 / (own**2 / runs.df + over_scenes**2 / of_scenes + in_both**2 / df)
    return added, np.where(added > 0, joint, plain)
