"""Schedules of mmcv 1.x: after the migration every step has the learning rate and momentum that it had."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from experiments.lint.migration.migrate import migrate
from experiments.lint.migration.report import read_previous, write_today
from pipeline.detector.build import load_config
from pipeline.detector.openmmlab.lr_schedule import LrSchedule, ScheduleError, read_length, read_schedule

FUSION = Path(__file__).parent / "previous/fusion.py"

EPOCHS, EPOCH = 20, 7
WARM = {"warmup": "linear", "warmup_iters": 10, "warmup_ratio": 1 / 3}
SCHEDULES: list[dict[str, Any]] = [
    {"policy": "cyclic", "target_ratio": (6, 1e-4), "cyclic_times": 1, "step_ratio_up": 0.4},
    {"policy": "cyclic", "target_ratio": (8, 1e-4), "cyclic_times": 3, "step_ratio_up": 0.35},
    {"policy": "CosineAnnealing", "min_lr_ratio": 1e-3, **WARM},
    {"policy": "CosineAnnealing", "by_epoch": False, "min_lr": 1e-6, **WARM, "warmup": "exp"},
    {"policy": "step", "step": [8, 11], **WARM, "warmup": "constant"},
    {"policy": "step", "step": 6, "gamma": 0.5, "min_lr": 2e-5},
    {"policy": "poly", "power": 0.9, "min_lr": 1e-5, "by_epoch": False},
    {"policy": "exp", "gamma": 0.8, **WARM, "warmup_iters": 2, "warmup_by_epoch": True},
    {"policy": "fixed", **WARM},
    {
        "policy": "cyclic",
        "target_ratio": (5, 1e-3),
        "cyclic_times": 2,
        "gamma": 0.5,
        "anneal_strategy": "linear",
    },
    {"policy": "inv", "gamma": 0.3, "power": 0.75, "by_epoch": False},
    {"policy": "FlatCosineAnnealing", "start_percent": 0.6, "min_lr_ratio": 0.02},
    {"policy": "LinearAnnealing", "min_lr_ratio": 0.1, "by_epoch": False},
    {"policy": "CosineRestart", "periods": [8, 12], "restart_weights": [1, 0.3], "min_lr": 1e-7, **WARM},
    {"policy": "OneCycle", "max_lr": 2e-3, "pct_start": 0.4},
    {
        "policy": "OneCycle",
        "max_lr": 2e-3,
        "three_phase": True,
        "anneal_strategy": "linear",
        "total_steps": 160,
    },
]
MOMENTA: list[dict[str, Any]] = [
    {"policy": "cyclic", "target_ratio": (0.8947368421052632, 1), "cyclic_times": 1, "step_ratio_up": 0.4},
    {"policy": "cyclic"},
    {"policy": "step", "step": [8, 11], "min_momentum": 0.3},
    {"policy": "CosineAnnealing", "min_momentum_ratio": 0.9},
    {"policy": "OneCycle", "pct_start": 0.25},
    {"policy": "OneCycle", "base_momentum": 0.8, "three_phase": True},
]


def hook_of_mmcv(config: dict[str, Any], base: float) -> Iterator[float]:
    """Run an epoch-based training with the hook of a policy, in the order in which mmcv 1.x calls it."""
    rate = regular = base
    count = itertools.count()
    warm = config.get("warmup_iters", 0) * (EPOCH if config.get("warmup_by_epoch") else 1)
    by_epoch = config.get("by_epoch", config["policy"] not in ("cyclic", "OneCycle"))
    for epoch in range(EPOCHS):
        if by_epoch:
            rate = regular = scheduled(config, base, epoch, EPOCHS)
        for _ in range(EPOCH):
            step = next(count)
            if not by_epoch:
                rate = regular = scheduled(config, base, step, EPOCHS * EPOCH)
            if config.get("warmup") and step < warm:
                left = 1 - step / warm
                rate = {
                    "constant": regular * config["warmup_ratio"],
                    "linear": regular * (1 - left * (1 - config["warmup_ratio"])),
                    "exp": regular * config["warmup_ratio"] ** left,
                }[config["warmup"]]
            elif step == warm:
                rate = regular
            yield rate


@dataclass(frozen=True)
class Curve:
    """The formulas again, written another way: a half cosine is a squared sine.

    Attributes:
        config: of the schedule.
        base: the value that it changes.
        done, whole: epochs or batches.
    """

    config: dict[str, Any]
    base: float
    done: int
    whole: int

    @property
    def low(self) -> float:
        lowest = self.config.get("min_lr")
        return self.base * self.config.get("min_lr_ratio", 0) if lowest is None else float(lowest)

    def ease(self, start: float, end: float, share: float) -> float:
        straight = "linear" in (self.config.get("anneal_strategy"), self.config["policy"][:6].lower())
        return start + (end - start) * (share if straight else math.sin(math.pi * share / 2) ** 2)

    def fixed(self) -> float:
        return self.base

    def exp(self) -> float:
        return self.base * math.prod([self.config["gamma"]] * self.done)

    def inv(self) -> float:
        return float(self.base / (1 + self.config["gamma"] * self.done) ** self.config["power"])

    def poly(self) -> float:
        left = (self.whole - self.done) / self.whole
        return float(self.low + (self.base - self.low) * left ** self.config["power"])

    def step(self) -> float:
        steps = self.config["step"]
        drops = self.done // steps if isinstance(steps, int) else len([s for s in steps if s <= self.done])
        return max(self.low, self.base * math.prod([self.config.get("gamma", 0.1)] * drops))

    def cosineannealing(self) -> float:
        return self.ease(self.base, self.low, self.done / self.whole)

    linearannealing = cosineannealing

    def flatcosineannealing(self) -> float:
        turn = round(self.whole * self.config["start_percent"])
        return self.ease(self.base, self.low, max(0, self.done - turn) / (self.whole - turn))

    def cosinerestart(self) -> float:
        first, late = self.config["periods"][0], self.done >= self.config["periods"][0]
        share = (self.done - late * first) / self.config["periods"][late]
        top = self.low + (self.base - self.low) * self.config["restart_weights"][late]
        return self.ease(top, self.low, share)

    def cyclic(self) -> float:
        cycle = self.whole // self.config["cyclic_times"]
        peak, last = (self.base * ratio for ratio in self.config["target_ratio"])
        peak = self.base + (peak - self.base) * math.prod(
            [self.config.get("gamma", 1)] * (self.done // cycle)
        )
        rise, at = int(self.config.get("step_ratio_up", 0.4) * cycle), self.done % cycle
        if at < rise:
            return self.ease(self.base, peak, at / rise)
        return self.ease(peak, last, (at - rise) / (cycle - rise))

    def onecycle(self) -> float:
        """mmcv's phases end at the batches pct_start * n - 1, (of three) 2 * pct_start * n - 2, and n - 1."""
        steps, three = self.config.get("total_steps", self.whole), self.config.get("three_phase", False)
        up = self.config.get("pct_start", 0.3) * steps
        low, top = self.config["max_lr"] / 25, self.config["max_lr"]
        ends = [up - 1, *([2 * up - 2] if three else []), steps - 1]
        values = [low, top, *([low] if three else []), low / 1e4]
        if "bottom" in self.config:  # a momentum
            values = [top, self.config["bottom"], top, top][: len(values)]
        phase = sum(self.done > end for end in ends)
        begin = 0 if phase == 0 else ends[phase - 1]
        return self.ease(values[phase], values[phase + 1], (self.done - begin) / (ends[phase] - begin))


def scheduled(config: dict[str, Any], base: float, done: int, whole: int) -> float:
    curve = Curve(config, base, done, whole)
    return float(getattr(curve, config["policy"].lower())())


def of_our_loop(config: dict[str, Any], batches: int) -> list[tuple[list[float], float]]:
    """Learning rates of two groups and Adam's first beta at every step."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-4 * factor} for factor in (1.0, 0.01)]
    made = torch.optim.AdamW(groups, lr=1e-4)
    length = read_length(config)
    assert length is not None
    schedule = LrSchedule(read_schedule(config), made, length, EPOCH)
    found = []
    for step in range(batches):
        schedule.apply(step)
        found.append(([group["lr"] for group in made.param_groups], made.param_groups[0]["betas"][0]))
    return found


@pytest.mark.parametrize("lr_config", SCHEDULES, ids=lambda c: f"{c['policy']}-{c.get('warmup', 'cold')}")
def test_every_step_has_the_rate_that_mmcv_computes(lr_config: dict[str, Any]) -> None:
    old = read_previous(FUSION)
    assert old is not None
    new = migrate({**old, "lr_config": lr_config}).config
    found = of_our_loop(new, EPOCHS * EPOCH)
    for group, base in enumerate((1e-4, 1e-6)):
        expected = list(hook_of_mmcv(lr_config, base))
        np.testing.assert_allclose([rates[group] for rates, _ in found], expected, rtol=1e-12, atol=1e-15)
    expected = list(hook_of_mmcv(MOMENTA[0], 0.9))
    np.testing.assert_allclose([beta for _, beta in found], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("config", MOMENTA, ids=lambda c: f"{c['policy']}-{len(c)}")
def test_every_step_has_the_momentum_that_mmcv_computes(config: dict[str, Any]) -> None:
    old = read_previous(FUSION)
    assert old is not None
    found = of_our_loop(migrate({**old, "momentum_config": config}).config, EPOCHS * EPOCH)
    theirs = {  # with the defaults of mmcv's hooks of the momentum, and the keys of those of the rate
        "step": {"gamma": 0.5, "min_lr": config.get("min_momentum")},
        "cyclic": {"target_ratio": (0.85 / 0.95, 1), "cyclic_times": 1},
        "CosineAnnealing": {"min_lr_ratio": config.get("min_momentum_ratio")},
        "OneCycle": {"max_lr": 0.95, "bottom": config.get("base_momentum", 0.85)},
    }[config["policy"]]
    expected = list(hook_of_mmcv({**theirs, **config}, 0.9))
    np.testing.assert_allclose([beta for _, beta in found], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("section", "config", "sentence"),
    [
        (
            "momentum_config",
            {"policy": "exp", "gamma": 0.9},
            "policy='exp' is not computed; expected one of step, ",
        ),
        ("momentum_config", {"policy": "cyclic", **WARM}, "the warm-up of a momentum is not computed"),
        ("lr_config", {"policy": "OneCycle"}, "policy 'OneCycle' needs max_lr"),
        ("lr_config", {"policy": "OneCycle", "max_lr": [1e-3, 1e-4]}, "max_lr is one number for all"),
        ("lr_config", {"policy": "cyclic", "by_epoch": True}, "policy 'cyclic' counts batches"),
        ("lr_config", {"policy": "CosineRestart", "periods": [3, 4], "min_lr": 0}, "need one length"),
        ("lr_config", {"policy": "exp"}, "policy 'exp' needs gamma"),
    ],
)
def test_a_schedule_that_is_not_kept_is_listed(section: str, config: dict[str, Any], sentence: str) -> None:
    old = read_previous(FUSION)
    assert old is not None
    lost = [entry for entry in migrate({**old, section: config}).lost if entry.key == (section,)]
    assert [entry.matters for entry in lost] == [True]
    assert sentence in lost[0].sentence


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"policy": "CosineRestart", "periods": [8, 11], "restart_weights": [1, 1], "min_lr": 0}, "19 of 20"),
        ({"policy": "OneCycle", "max_lr": 1e-3, "total_steps": 139}, "below the 140 batches"),
    ],
)
def test_a_schedule_that_ends_early_is_refused_before_the_first_step(
    config: dict[str, Any], sentence: str
) -> None:
    old = read_previous(FUSION)
    assert old is not None
    with pytest.raises(ScheduleError, match=sentence):
        of_our_loop(migrate({**old, "lr_config": config}).config, 1)


def test_the_runner_of_mmengine_gets_the_same_rates(tmp_path: Path) -> None:
    write_today(FUSION, tmp_path / "new.py")
    new = load_config(tmp_path / "new.py").to_dict()
    made = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedulers = [
        PARAM_SCHEDULERS.build(entry, default_args={"optimizer": made, "epoch_length": EPOCH})
        for entry in new["param_scheduler"]
    ]
    for step, ((rate, _), beta) in enumerate(of_our_loop(new, EPOCHS * EPOCH)):
        assert (made.param_groups[0]["lr"], made.param_groups[0]["betas"][0]) == (rate, beta), step
        made.step()
        for scheduler in schedulers:
            scheduler.step()
