"""The noise in words."""

import math

from experiments.analysis.model.mean_squares import MeanSquares
from experiments.reporting.noise_words import about_noise


def test_both_ratios_are_said_with_their_degrees_of_freedom():
    # the F of 3 and 5 degrees of freedom is over 5.41 in one of twenty, the F of 1 and 7 over 5.59
    text = about_noise(MeanSquares(5.41, 3, 1.0, 5, 5.59, 1, 1.0, 7))
    assert "seed by layer against the rest, F = 5.41 with 3 and 5 degrees of freedom, p = 0.05." in text
    assert "lack of fit against pure error, F = 5.59 with 1 and 7 degrees of freedom, p = 0.05." in text


def test_what_cannot_be_tested_is_not_said():
    assert about_noise(None) == ""
    assert "one seed" in about_noise(MeanSquares(math.nan, 0, 1.0, 4))
    assert about_noise(MeanSquares(1.0, 1, math.nan, 0)) == ""
