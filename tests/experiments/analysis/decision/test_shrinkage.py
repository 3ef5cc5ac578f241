"""Shrinkage: nothing is left of noise, nearly all of large effects, and the winner's curse goes."""

import numpy as np
import pytest

from experiments.analysis.decision.shrinkage import shrink


def test_effects_no_larger_than_their_noise_are_nothing():
    assert (shrink(np.array([0.5, -0.8, 0.3]), np.eye(3)) == 0).all()


def test_as_on_paper():
    # mean square 8, noise 1: the true effects' variance is 7, and 7/8 of each estimate is left
    found = shrink(np.array([2.0, -2.0, 4.0, np.sqrt(8.0)]), np.eye(4))
    assert found == pytest.approx(7 / 8 * np.array([2.0, -2.0, 4.0, np.sqrt(8.0)]))


def test_effects_without_noise_stay():
    assert shrink(np.array([1.0, -2.0]), np.zeros((2, 2))) == pytest.approx([1.0, -2.0])
    assert not len(shrink(np.empty(0), np.empty((0, 0))))


def test_the_best_of_many_is_no_longer_too_good():
    """Six layers without any effect: the best plan's estimated gain is far above zero, shrunk it is not."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((2000, 6))
    plain = np.maximum(draws, 0).sum(axis=1)
    shrunk = np.array([np.maximum(shrink(draw, np.eye(6)), 0).sum() for draw in draws])
    assert plain.mean() == pytest.approx(6 * 0.399, abs=0.1)
    assert shrunk.mean() < 0.35 * plain.mean()
