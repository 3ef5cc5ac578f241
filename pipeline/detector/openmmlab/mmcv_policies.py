"""The policies of mmcv 1.x's ``lr_config`` and ``momentum_config``: each a formula of the step.

``base`` is the value in the optimiser's config; ``done`` of ``whole`` counts epochs or batches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WARMUP_KEYS = ("warmup", "warmup_iters", "warmup_ratio", "warmup_by_epoch")


def _ease(start: float, end: float, share: float, curve: str = "cos") -> float:
    """Return the value at a share of the way; ``curve`` is mmcv's ``anneal_strategy``."""
    if curve == "linear":
        return start + (end - start) * share
    return end + 0.5 * (start - end) * (math.cos(math.pi * share) + 1)


def _lowest(base: float, keys: Mapping[str, Any], default: float = 0.0) -> float:
    """Return the end of an annealing: ``min_lr``, or ``min_lr_ratio`` of the base."""
    ratio = next(
        (keys[key] for key in ("min_lr_ratio", "min_momentum_ratio") if keys.get(key) is not None), None
    )
    if ratio is not None:
        return base * float(ratio)
    return float(
        next((keys[key] for key in ("min_lr", "min_momentum") if keys.get(key) is not None), default)
    )


def _fixed(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    return base


def _step(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    at = keys["step"]
    passed = done // at if isinstance(at, int) else sum(done >= one for one in at)
    return max(base * float(keys.get("gamma", 0.1)) ** passed, _lowest(base, keys, -math.inf))


def _exp(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    return base * float(keys["gamma"]) ** done


def _inv(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    return float(base * (1 + float(keys["gamma"]) * done) ** -float(keys.get("power", 1.0)))


def _poly(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    low = _lowest(base, keys)
    return (base - low) * (1 - done / whole) ** float(keys.get("power", 1.0)) + low


def _anneal(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    return _ease(base, _lowest(base, keys), done / whole)


def _anneal_linearly(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    return _ease(base, _lowest(base, keys), done / whole, "linear")


def _flat_then_anneal(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    start = round(whole * float(keys.get("start_percent", 0.75)))
    return base if done < start else _ease(base, _lowest(base, keys), (done - start) / (whole - start))


def _restart(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    periods, low, begin = keys["periods"], _lowest(base, keys), 0
    for period, weight in zip(periods, keys.get("restart_weights", [1]), strict=True):
        if done < begin + period:
            return low + float(weight) * (_ease(base, low, (done - begin) / period) - low)
        begin += period
    raise ValueError(f"periods={list(periods)} end after {begin} of {whole}; lengthen the last one")


def _cyclic(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    ratios = keys.get("target_ratio", (10, 1e-4))
    ratios = ratios if isinstance(ratios, Sequence) else (ratios,)
    peak, end = (*ratios, ratios[0] / 1e5)[:2]
    length = whole // int(keys.get("cyclic_times", 1))
    up = int(float(keys.get("step_ratio_up", 0.4)) * length)
    at, smaller = done % length, float(keys.get("gamma", 1)) ** (done // length)
    peak, curve = 1 + smaller * (peak - 1), keys.get("anneal_strategy", "cos")
    if at < up:
        return _ease(base, base * peak, at / up, curve)
    return _ease(base * peak, base * end, (at - up) / (length - up), curve)


def _one_cycle(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    """Return a value that does not depend on the base: mmcv gives all groups the same, whatever lr_mult."""
    if "max_momentum" in keys:
        first = last = float(keys["max_momentum"])
        peak = float(keys["base_momentum"])
    else:
        peak = float(keys["max_lr"])
        first = peak / float(keys.get("div_factor", 25))
        last = first / float(keys.get("final_div_factor", 1e4))
    steps = int(keys.get("total_steps") or whole)
    if steps < whole:
        raise ValueError(f"total_steps={steps} is below the {whole} batches of the training; raise it")
    up = float(keys.get("pct_start", 0.3)) * steps
    knots = [(0.0, first), (up - 1, peak), (steps - 1.0, last)]
    if keys.get("three_phase"):
        knots.insert(2, (2 * up - 2, first))
    curve = keys.get("anneal_strategy", "cos")
    phases = list(pairwise(knots))
    (begin, start), (end, goal) = next((p for p in phases if done <= p[1][0]), phases[-1])
    return _ease(start, goal, (done - begin) / (end - begin), curve)


@dataclass(frozen=True)
class Policy:
    """A policy of mmcv.

    Attributes:
        value: its value from (base, keys, done, whole).
        lr: the keys that it reads in ``lr_config``.
        momentum: likewise in ``momentum_config``; None: mmcv has no such policy there.
        needs: keys without a default.
        by_epoch: whether mmcv counts epochs unless told otherwise; False: it counts batches only.
    """

    value: Callable[[float, Mapping[str, Any], int, int], float]
    lr: tuple[str, ...] = ()
    momentum: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    by_epoch: bool = True


LOW, LOW_MOMENTUM = ("min_lr", "min_lr_ratio"), ("min_momentum", "min_momentum_ratio")
CYCLE = ("target_ratio", "cyclic_times", "step_ratio_up")
ONE_CYCLE = ("pct_start", "anneal_strategy", "three_phase")
OF_ONE = ("max_lr", "base_momentum", "max_momentum")

POLICIES: Mapping[str, Policy] = {
    "fixed": Policy(_fixed),
    "step": Policy(_step, ("step", "gamma", "min_lr"), ("step", "gamma", "min_momentum"), ("step",)),
    "exp": Policy(_exp, ("gamma",), needs=("gamma",)),
    "inv": Policy(_inv, ("gamma", "power"), needs=("gamma",)),
    "poly": Policy(_poly, ("power", "min_lr")),
    "CosineAnnealing": Policy(_anneal, LOW, LOW_MOMENTUM),
    "FlatCosineAnnealing": Policy(_flat_then_anneal, ("start_percent", *LOW)),
    "LinearAnnealing": Policy(_anneal_linearly, LOW),
    "CosineRestart": Policy(_restart, ("periods", "restart_weights", *LOW), needs=("periods",)),
    "cyclic": Policy(_cyclic, (*CYCLE, "anneal_strategy", "gamma"), CYCLE, by_epoch=False),
    "OneCycle": Policy(
        _one_cycle,
        ("max_lr", "total_steps", "div_factor", "final_div_factor", *ONE_CYCLE),
        ("base_momentum", "max_momentum", *ONE_CYCLE),
        by_epoch=False,
    ),
}

MOMENTUM_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "step": {"gamma": 0.5},
    "cyclic": {"target_ratio": (0.85 / 0.95, 1)},
    "OneCycle": {"base_momentum": 0.85, "max_momentum": 0.95},
}
"""Policy -> the defaults that ``momentum_config`` has and ``lr_config`` has not."""


def check_policy(config: Mapping[str, Any], momentum: bool = False) -> None:
    """Refuse an ``lr_config`` or ``momentum_config`` that is not computed here.

    Args:
        config: it.
        momentum: it is a ``momentum_config``.

    Raises:
        ValueError: an unknown policy, key or value, in one sentence.
    """
    name = str(config.get("policy"))
    policy = POLICIES.get(name)
    known = None if policy is None else policy.momentum if momentum else policy.lr
    if policy is None or known is None:
        there = [kind for kind, one in POLICIES.items() if not momentum or one.momentum is not None]
        raise ValueError(f"policy={name!r} is not computed; expected one of {', '.join(there)}")
    if momentum and config.get("warmup"):  # mmcv divides by its factors there, and one does nothing
        raise ValueError("the warm-up of a momentum is not computed; remove warmup")
    unread = [key for key in config if key not in {"policy", "by_epoch", *WARMUP_KEYS, *known}]
    if unread:
        raise ValueError(f"policy {name!r} does not read {', '.join(unread)}; remove it")
    needs = ("max_lr",) if name == "OneCycle" and not momentum else policy.needs
    missing = [key for key in needs if config.get(key) is None]
    if missing:
        raise ValueError(f"policy {name!r} needs {', '.join(missing)}")
    if config.get("by_epoch") and not policy.by_epoch:
        raise ValueError(f"policy {name!r} counts batches; remove by_epoch=True")
    if len(config.get("periods", [1])) != len(config.get("restart_weights", [1])):
        raise ValueError("periods and restart_weights need one length")
    listed = [key for key in OF_ONE if not isinstance(config.get(key, 0), int | float)]
    if listed:
        raise ValueError(f"{listed[0]} is one number for all parameters here, not {config[listed[0]]!r}")
