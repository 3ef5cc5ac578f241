"""What a report says about the noise of a study: does it differ between seeds, and does the model fit?"""

import math

from experiments.analysis.model.mean_squares import MeanSquares


def about_noise(squares: MeanSquares | None) -> str:
    """Return what varies from seed to seed and what the model leaves out, each with its F; may be empty.

    Args:
        squares: the noise by source; None if it was not estimated from trials.
    """
    if squares is None:
        return ""
    if not squares.seed_by_site_df:
        return " With one seed nothing shows whether gains differ from seed to seed."
    tests = {
        "Gains between seeds: seed by layer against the rest": (
            squares.seed_by_site_f,
            squares.seed_by_site_df,
            squares.rest_df,
        ),
        "What layers and pairs leave out: lack of fit against pure error": (
            squares.lack_of_fit_f,
            squares.lack_of_fit_df,
            squares.pure_error_df,
        ),
    }
    return "".join(
        f" {name}, F = {ratio:.2f} with {above} and {below} degrees of freedom, p = {p_value:.2g}."
        for name, ((ratio, p_value), above, below) in tests.items()
        if not math.isnan(ratio)
    )
