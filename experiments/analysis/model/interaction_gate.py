"""Whether interactions join the model: a matter of the design, never of the data.

In the model they cost degrees of freedom. Out of it they are noise. The narrower expected interval decides,
for interactions of a size that is fixed beforehand.
"""

import math

from scipy.special import stdtrit

from experiments.analysis.model.mean_squares import WEIGHT_OF_REST

USUAL_PAIR = 1.0
"""Size of an interaction that studies are planned for, in noises of one trial: half of a gain that a study
of 32 trials is made to find."""
TAIL = 0.025
"""Of the intervals that are compared: two-sided, 95 %."""


def pairs_join(num_trials: int, num_pairs: int, seed_by_site_df: int, rest_df: int) -> bool:
    """Return whether intervals of gains are expected to be narrower with the interactions in the model.

    Args:
        num_trials: trials that are fitted.
        num_pairs: interactions that the arms can tell apart.
        seed_by_site_df: degrees of freedom of seed by site, the same with and without.
        rest_df: those of the other residuals with the interactions in the model.
    """
    if rest_df < 0 or seed_by_site_df + rest_df < 1:
        return False
    # a centred product of two-level sites is 1/4 or -1/4: n trials hold n/16 of its square
    of_pairs = num_pairs * USUAL_PAIR**2 * num_trials / 16 / (rest_df + num_pairs)
    with_pairs = _half_width(seed_by_site_df, rest_df, 0.0)
    return with_pairs <= _half_width(seed_by_site_df, rest_df + num_pairs, of_pairs)


def _half_width(seed_by_site_df: int, rest_df: int, excess: float) -> float:
    """Return the expected half-width of an interval, where the rest's mean square is too large by a share."""
    weight = min(WEIGHT_OF_REST, rest_df) if seed_by_site_df else rest_df
    df = seed_by_site_df + weight
    return float(-stdtrit(df, TAIL)) * math.sqrt(1 + excess * weight / df)
