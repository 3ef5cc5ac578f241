"""The parts of a step that must be functions of (settings, step)."""

import itertools
import random

import numpy as np
import pytest
import torch

from pipeline.config.plan import Plan
from pipeline.runtime.determinism import seed_everything
from pipeline.training.step import LAST_LR, lr_factor, plan_of_step


def test_the_learning_rate_warms_up_then_follows_a_cosine() -> None:
    factors = [lr_factor(step, steps=110, warmup=10) for step in range(110)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx((1 + LAST_LR) / 2)  # half way down
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert lr_factor(110, steps=110, warmup=10) == pytest.approx(LAST_LR)


def test_no_warm_up_and_a_warm_up_that_never_ends() -> None:
    assert lr_factor(0, steps=1, warmup=0) == 1.0
    assert lr_factor(4, steps=5, warmup=10) == 0.5


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeding_covers_three_generators() -> None:
    seed_everything(1, 2, 3)
    first = draw()
    seed_everything(1, 2, 3)
    assert draw() == first
    for other in ((1, 2, 4), (1, 3, 3), (2, 2, 3)):
        seed_everything(*other)
        assert not set(draw()) & set(first)


def test_the_plan_of_a_step_is_drawn_evenly_and_repeatably() -> None:
    plans = [Plan.of({"*": f"{kind}/reference"}) for kind in ("none", "window", "global")]
    drawn = [plan_of_step(plans, seed=0, step=step) for step in range(3000)]
    assert drawn == [plan_of_step(plans, seed=0, step=step) for step in range(3000)]
    for plan in plans:
        assert abs(drawn.count(plan) - 1000) < 4 * np.sqrt(3000 * 2 / 9)  # four standard deviations
    assert plan_of_step(plans[:1], seed=0, step=5) == plans[0]
