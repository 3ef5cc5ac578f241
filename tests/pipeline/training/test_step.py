"""The parts of a step that must be functions of (settings, step)."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from pipeline.config.plan import Plan
from pipeline.errors import TrialError
from pipeline.runtime.determinism import seed_everything
from pipeline.training.step import LAST_LR, TrainStep, lr_factor, plan_of_step, split


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


class Tiny(nn.Module):
    """The least that a ``TrainStep`` trains: its loss is a weight times what the batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.data_preprocessor = Preprocessor()

    def forward(
        self, inputs: dict[str, Any], data_samples: list[Any], divisors: object = None, mode: str = "loss"
    ) -> dict[str, Tensor]:
        points = torch.stack(inputs.get("trunk") or inputs["points"]).mean(dim=0)
        return {"loss_a": (self.weight**2 * points).sum(), "loss_b": self.weight.sum()}

    def run_trunk(self, inputs: dict[str, Any]) -> list[Tensor]:
        return inputs["points"]

    def loss_divisors(self, data_samples: list[Any]) -> None: ...

    def bias_numbers(self) -> list[Any]:
        return []


class Preprocessor:
    device = torch.device("cpu")

    def __call__(self, batch: dict[str, Any], _training: bool) -> dict[str, Any]:
        return {"inputs": {**batch["inputs"], "imgs": torch.zeros(1, 1, 3, 4, 4)}}


def tiny(fused: bool) -> TrainStep:
    model = Tiny()
    return TrainStep(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused), clip_norm=1.0)


def batch_of(*values: float) -> dict[str, Any]:
    return {
        "inputs": {"points": [torch.tensor([v, 2 * v]) for v in values]},
        "data_samples": [Named()] * len(values),
    }


class Named:
    """A data sample, as far as a step looks at it."""

    def set_metainfo(self, _meta: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_not_finite_changes_no_weight(fused: bool) -> None:
    step = tiny(fused)
    numbers = {m.metric: m.value for m in step.step(batch_of(3.0), 1.0)}
    assert numbers["loss"] == numbers["loss_a"] + numbers["loss_b"] == 11.0
    assert numbers["grad_norm"] == pytest.approx((7**2 + 13**2) ** 0.5)
    kept = step.model.weight.detach().clone()
    assert not torch.equal(kept, torch.ones(2))
    with pytest.raises(TrialError, match="not finite: loss, loss_a, grad_norm; lower lr_scale"):
        step.step(batch_of(torch.nan), 1.0)
    assert torch.equal(step.model.weight, kept)


class Overflowing(Tiny):
    """Its loss may be infinite while the derivative is 1."""

    def forward(
        self, inputs: dict[str, Any], data_samples: list[Any], divisors: object = None, mode: str = "loss"
    ) -> dict[str, Tensor]:
        return {"loss_a": self.weight.sum() + torch.stack(inputs["trunk"]).sum()}


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_that_is_not_finite_is_told_to_other_ranks_by_the_gradient(fused: bool) -> None:
    model = Overflowing()
    step = TrainStep(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused), clip_norm=1.0)
    with pytest.raises(TrialError, match="not finite: loss, loss_a, grad_norm; lower lr_scale"):
        step.step(batch_of(torch.inf), 1.0)
    assert torch.equal(model.weight, torch.ones(2))


def test_numbers_may_be_read_after_the_next_step() -> None:
    late, prompt = tiny(fused=True), tiny(fused=True)
    launched = [late.launch(late.prepare(batch_of(value)), 1.0) for value in (1.0, torch.nan, 2.0)]
    assert launched[0].read() == prompt.step(batch_of(1.0), 1.0)
    with pytest.raises(TrialError, match="not finite"):
        launched[1].read()
    assert launched[2].read() == prompt.step(batch_of(2.0), 1.0)
    torch.testing.assert_close(late.model.weight, prompt.model.weight)


def test_accumulation_is_that_of_mmengine() -> None:
    ours, theirs = Tiny(), Tiny()
    step = TrainStep(ours, torch.optim.AdamW(ours.parameters(), lr=0.1), 1.0, batches_per_step=3)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    wrapper = OptimWrapper(optimizer, accumulative_counts=3, clip_grad={"max_norm": 1.0})
    wrapper.initialize_count_status(theirs, 0, 12)
    frames = list(np.random.default_rng(0).uniform(1, 3, (4, 3, 2)))  # steps, batches, samples of a batch
    for factor, batches in enumerate(frames, 1):
        means = []
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * factor
        for batch in batches:
            with wrapper.optim_context(theirs):
                loss = sum(theirs(batch_of(*batch)["inputs"], [], "loss").values())
            wrapper.update_params(loss)
            means.append(float(loss.detach()))
        numbers = {m.metric: m.value for m in step.step(batch_of(*batches.flatten()), factor)}
        assert numbers["loss"] == pytest.approx(np.mean(means))
        assert torch.equal(ours.weight, theirs.weight)


def test_a_step_of_fewer_samples_than_batches_and_one_of_an_odd_number() -> None:
    sizes = [len(part["data_samples"]) for part in split(batch_of(1.0, 2.0, 3.0, 4.0, 5.0), 2)]
    assert sizes == [3, 2]
    assert [len(part["data_samples"]) for part in split(batch_of(1.0), 4)] == [1]
