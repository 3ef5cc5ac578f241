"""Learning-rate groups against mmengine's own constructor; frozen parts stay as they are."""

import logging
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from pipeline.detector.openmmlab.optimizer import OptimError, build_optimizer, clip_norm, freeze

CUSTOM = {
    "head": {"lr_mult": 0.5},
    "head.deep": {"lr_mult": 0.1, "decay_mult": 2.0},
    "bias_scale": {"lr_mult": 2.0, "decay_mult": 0.0},
}


class Toy(nn.Module):
    """A frozen-able stem with batch norm, a head, and a lone scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.ModuleDict({"deep": nn.Linear(4, 4), "flat": nn.Linear(4, 2)})
        self.bias_scale = nn.Parameter(torch.tensor(2.5))


def wrapper(custom: dict[str, Any], **more: Any) -> dict[str, Any]:
    optimizer = {"type": "AdamW", "lr": 0.2, "weight_decay": 0.01}
    return {"type": "OptimWrapper", "optimizer": optimizer, "paramwise_cfg": {"custom_keys": custom}, **more}


def rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    of = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: of[p] for name, p in model.named_parameters() if p in of}


def test_rates_and_decays_are_mmengine_s() -> None:
    model = Toy()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    theirs = DefaultOptimWrapperConstructor(*_mmengine_arguments(wrapper(CUSTOM)))(model).optimizer
    ours = build_optimizer(model, wrapper(CUSTOM))
    expected = rates(theirs, model)
    assert rates(ours, model) == {name: pytest.approx(pair) for name, pair in expected.items()}
    assert len(ours.param_groups) == 4


def _mmengine_arguments(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"type": "OptimWrapper", "optimizer": config["optimizer"]}, config["paramwise_cfg"]


def test_the_scale_multiplies_every_rate() -> None:
    model = Toy()
    plain, scaled = (build_optimizer(model, wrapper(CUSTOM), s) for s in (1.0, 0.25))
    for (lr, decay), (other, same) in zip(
        rates(plain, model).values(), rates(scaled, model).values(), strict=True
    ):
        assert other == pytest.approx(lr / 4)
        assert same == decay


def test_a_multiplier_of_zero_freezes_and_another_frees_again() -> None:
    model = Toy()
    assert set(freeze(model, wrapper({"stem": {"lr_mult": 0.0}}))) == {
        n for n, _ in model.named_parameters() if "stem" in n
    }
    optimizer = build_optimizer(model, wrapper({"stem": {"lr_mult": 0.0}}))
    assert not any(name.startswith("stem") for name in rates(optimizer, model))
    assert freeze(model, wrapper({})) == []
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (wrapper({"no_such_part": {"lr_mult": 0.1}}), "no parameter's name contains 'no_such_part'"),
        (wrapper({"head": {"lr_mul": 0.1}}), r"unknown keys paramwise_cfg.custom_keys.head.lr_mul"),
        (wrapper({}, accumulate=2), "unknown keys accumulate"),
        (wrapper({}, optimizer={"type": "Adammm", "lr": 1.0}), "torch.optim such as 'AdamW', got 'Adammm'"),
        (
            wrapper({}, optimizer={"type": "AdamW", "lr": 1.0, "betta": 1}),
            "unexpected keyword argument 'betta'",
        ),
        (wrapper({}, optimizer={"type": "AdamW"}), "expected a learning rate"),
        (
            wrapper({}, optimizer={"type": "AdamW", "lr": "1e-4"}),
            r"^optim_wrapper\.optimizer\.lr: expected a number, above 0, got '1e-4'; YAML .* write 1\.0e-4$",
        ),
        (wrapper({}, optimizer={"type": "AdamW", "lr": -1.0}), r"lr: expected a number, above 0, got -1\.0$"),
        (wrapper({}, optimizer={"type": "AdamW", "lr": float("inf")}), "lr: expected .* got inf"),
        (wrapper({}, optimizer={"type": "AdamW", "lr": None}), "lr: expected .* got None"),
        (
            wrapper({}, optimizer={"type": "AdamW", "lr": 1.0, "weight_decay": "1e-2"}),
            r"optimizer\.weight_decay: expected a number, 0 or more, got '1e-2'",
        ),
        (
            wrapper({}, optimizer={"type": "AdamW", "lr": 1.0, "betas": (2.0, 0.9)}),
            r"^optim_wrapper\.optimizer: Invalid beta",
        ),
        (wrapper({}, optimizer=None), "expected a learning rate"),
        (wrapper({}, type="ApexOptimWrapper"), "expected 'OptimWrapper' or 'AmpOptimWrapper'"),
        (wrapper({}, type="AmpOptimWrapper", dtype="float16"), "expected 'bfloat16'.*got 'float16'"),
        (wrapper({}, dtype="bfloat16"), "unknown keys dtype"),
    ],
)
def test_what_cannot_be_read_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimError, match=message):
        build_optimizer(Toy(), config)


@pytest.mark.parametrize("paramwise", [None, {"custom_keys": None}])
def test_none_stands_for_no_multipliers_as_in_mmengine(paramwise: dict[str, Any] | None) -> None:
    model = Toy()
    config = {**wrapper({}), "paramwise_cfg": paramwise}
    assert freeze(model, config) == []
    assert set(rates(build_optimizer(model, config), model).values()) == {(0.2, 0.01)}


def test_nothing_left_to_train_is_refused() -> None:
    model = Toy()
    everything = wrapper({"stem": {"lr_mult": 0}, "head": {"lr_mult": 0}, "bias_scale": {"lr_mult": 0}})
    freeze(model, everything)
    with pytest.raises(OptimError, match="nothing is left to train"):
        build_optimizer(model, everything)


def test_clip_norm_reads_the_l2_norm_alone() -> None:
    assert clip_norm(wrapper({})) is None
    assert clip_norm(wrapper({}, clip_grad={"max_norm": 35, "norm_type": 2})) == 35.0
    for clip in ({"max_norm": 1, "norm_type": 1}, {"norm_type": 2}):
        with pytest.raises(OptimError, match=r"expected dict\(max_norm=...\) and the L2 norm, got"):
            clip_norm(wrapper({}, clip_grad=clip))
