"""The effect of every site from one linear model over all trials, with a block per seed.

Four sources of uncertainty meet in an interval: the noise of a training, what sites gain differently from
seed to seed (``mean_squares``), the choice of the validation scenes (``scenes``), and trials that were
stopped early (``censoring``). Interactions join the model where the design supports them
(``interaction_gate``); otherwise they are part of its noise.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.design_table import DesignTable
from experiments.analysis.model.aliasing import Pairs, pair_columns
from experiments.analysis.model.censoring import regress_stages
from experiments.analysis.model.fit import ErrorParts, Fit, Interaction, Response
from experiments.analysis.model.interaction_gate import pairs_join
from experiments.analysis.model.mean_squares import MeanSquares, basis, split_noise
from experiments.analysis.model.outliers import find_collapsed
from experiments.analysis.model.robust_errors import robust_covariance, unbalanced
from experiments.analysis.model.scenes import over_scenes
from experiments.recipes.decision_rule import AnalysisError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Runs:
    """The regression on the values themselves; coefficients are the columns of the model."""

    effect: Array
    covariance: Array
    df: Array
    noise: float
    squares: MeanSquares
    carried: frozenset[int] = frozenset()


def fit_gain(response: Response, table: DesignTable) -> Fit:
    """Fit an accuracy: ``fit_sites`` without trials whose training collapsed to a finite, useless value.

    One such trial among 32 would be larger than the noise of all others. They are looked for at the first
    early step, too: there early stopping ends most of them.

    Raises:
        AnalysisError: see ``fit_sites``.
    """
    model = np.hstack([table.treated, table.blocks])
    collapsed: list[int] = []
    for index in range(len(response.early_values) + 1):
        stages = [*response.early_values, response.values]
        found = find_collapsed(stages[index], model)
        response = _without(response, found)
        collapsed += found
    return replace(
        fit_sites(response, table), collapsed=tuple(table.trials[trial].name for trial in collapsed)
    )


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
    blocks = table.blocks[usable]
    blocks = blocks[:, blocks.any(axis=0)]
    matrix = np.hstack([table.treated[usable], blocks])
    _refuse_unestimable(matrix, blocks.shape[1], table)
    pairs = _pairs(matrix, response, usable, table)
    matrix = np.hstack([matrix, *(column[:, None] for column in pairs.values())])
    runs = _regress(matrix, response, usable, table)
    num_terms = table.treated.shape[1]
    kept = np.r_[0:num_terms, num_terms + blocks.shape[1] : matrix.shape[1]]  # all but the blocks
    parts = _parts(runs, matrix, response, usable, kept)
    squared = np.array([parts.of(weights) for weights in np.eye(len(kept))[:num_terms]])
    total = squared[:, 0] + squared[:, 1]
    effect, errors = runs.effect[kept], np.sqrt(np.diag(parts.runs))
    return Fit(
        effect[:num_terms],
        np.sqrt(total),
        squared[:, 2],
        runs.squares.seed_by_site_df + runs.squares.rest_df,
        runs.noise,
        int(usable.sum()),
        np.divide(squared[:, 1], total, out=np.zeros(num_terms), where=total > 0),
        response.num_scenes if len(response.draws) else 0,
        tuple(
            Interaction(names, float(effect[i]), float(errors[i]), df=float(parts.runs_df[i]))
            for i, names in enumerate(pairs, num_terms)
        ),
        carried=tuple(term for index, term in enumerate(table.terms) if index in runs.carried),
        parts=parts,
        mean_squares=runs.squares,
    )


def _without(response: Response, trials: list[int]) -> Response:
    values, draws, early = response.values.copy(), response.draws.copy(), response.early_values.copy()
    for measured in (values, draws, early):
        if measured.size:
            measured[..., trials] = np.nan
    return replace(response, values=values, draws=draws, early_values=early)


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


def _pairs(matrix: Array, response: Response, usable: Mask, table: DesignTable) -> Pairs:
    """Return the interactions that join the model: columns (usable trials,)."""
    pairs = pair_columns(table, usable)
    ended = np.isfinite(response.values[usable])  # the others have early values only
    wide = np.hstack([matrix, *(column[:, None] for column in pairs.values())])[ended]
    num_early = len(response.early_values)
    if not pairs or np.linalg.matrix_rank(wide) < wide.shape[1]:
        return {}
    with_seeds = basis(np.hstack([wide, _seed_by_site(table, usable)[ended]])).shape[1]
    rest_df = len(wide) - with_seeds - num_early
    joins = pairs_join(len(wide), len(pairs), with_seeds - wide.shape[1], rest_df)
    return pairs if joins else {}


def _regress(matrix: Array, response: Response, usable: Mask, table: DesignTable) -> _Runs:
    values = response.values[usable]
    seed_by_site, arms = _seed_by_site(table, usable), table.arms[usable]

    def split(columns: Array, reached: Mask, of_reached: Array) -> MeanSquares:
        return split_noise(columns, seed_by_site[reached], arms[reached], of_reached)

    if not np.isfinite(values).all():
        stage = regress_stages(matrix, [*response.early_values[:, usable], values], split)
        df = np.full(matrix.shape[1], stage.df)
        return _Runs(stage.effect, stage.covariance, df, stage.noise, stage.squares, stage.carried)
    inverse = np.linalg.pinv(matrix)
    squares = split(matrix, np.ones(len(values), dtype=bool), values)
    scale, of_sites = squares.of_sites
    noise = math.sqrt(squares.pooled)
    robust = robust_covariance(matrix, values) if unbalanced(table) else None
    if robust is not None:
        return _Runs(inverse @ values, *robust, noise, squares)
    df = np.full(matrix.shape[1], of_sites)
    return _Runs(inverse @ values, scale * inverse @ inverse.T, df, noise, squares)


def _seed_by_site(table: DesignTable, usable: Mask) -> Array:
    """Return (usable trials, seeds * terms) products of blocks and centred sites."""
    seeds, halves = table.blocks[usable, : len(table.seeds)], table.treated[usable] - 0.5
    return np.asarray((seeds[:, :, None] * halves[:, None, :]).reshape(len(seeds), -1))


def _parts(
    runs: _Runs, matrix: Array, response: Response, usable: Mask, kept: NDArray[np.int64]
) -> ErrorParts:
    of_runs = runs.covariance[np.ix_(kept, kept)]
    scenes = over_scenes(matrix, response, usable)
    if scenes is None:
        return ErrorParts(of_runs, runs.df[kept], np.zeros_like(of_runs), np.zeros_like(of_runs))
    return ErrorParts(
        of_runs,
        runs.df[kept],
        scenes.over_scenes[np.ix_(kept, kept)],
        scenes.in_both[np.ix_(kept, kept)],
        scenes.over_scenes_df,
        scenes.in_both_df,
    )
