"""Optimiser from a config's ``optim_wrapper``, with mmengine's ``custom_keys`` multipliers.

mmengine's own constructor makes one group per parameter, which is slow, and logs each group. Ours makes one
group per pair of multipliers, with the same learning rates and decays. A multiplier of 0 freezes a parameter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.runtime.without_dynamo import without_dynamo


class OptimError(ValueError):
    """An optimiser config cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class Multipliers:
    """Factors on the learning rate and the weight decay of a parameter."""

    lr: float = 1.0
    decay: float = 1.0


AMP_WRAPPER, AMP_DTYPE = "AmpOptimWrapper", "bfloat16"
"""mmengine's wrapper for autocast, and the dtype of our training. Its range needs no loss scale."""

WRAPPER_KEYS = {"type", "constructor", "optimizer", "paramwise_cfg", "clip_grad", "accumulative_counts"}
FUSED = (torch.optim.Adam, torch.optim.AdamW)
"""Optimisers with one kernel for a step of many tensors. The results are the same up to rounding."""

MULTIPLIER_KEYS = {"lr_mult", "decay_mult"}


def build_optimizer(
    model: nn.Module, optim_wrapper: Mapping[str, Any], lr_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Build the optimiser of a model; call ``freeze`` on the model before.

    Args:
        model: the detector, or a wrapper that has it as ``module``.
        optim_wrapper: ``dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=...), paramwise_cfg=
            dict(custom_keys={part of a name: dict(lr_mult=, decay_mult=)}), clip_grad=...)``. As in mmengine,
            the longest custom key in a parameter's name gives its multipliers.
        lr_scale: factor on every learning rate.

    Returns:
        The optimiser. The key ``name`` of its groups holds their multiplier.

    Raises:
        OptimError: an unknown key, an unknown optimiser, a value that the optimiser does not take, a custom
            key that matches no parameter, or no parameter that trains.
    """
    settings = dict(read_wrapper(optim_wrapper)["optimizer"])
    kind = settings.pop("type", None)
    cls: Any = getattr(torch.optim, str(kind), None)
    known = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    if not known:
        raise OptimError(
            f"optim_wrapper.optimizer.type: expected a class of torch.optim such as 'AdamW', got {kind!r}"
        )
    model = getattr(model, "module", model)
    base_lr, base_decay = settings.pop("lr") * lr_scale, settings.get("weight_decay", 0.0)
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    for name, factors in multipliers(model, optim_wrapper).items():
        parameter = model.get_parameter(name)
        if parameter.requires_grad:
            groups.setdefault(factors, []).append(parameter)
    if not groups:
        raise OptimError("optim_wrapper.paramwise_cfg freezes every parameter; nothing is left to train")
    made = [
        {
            "params": parameters,
            "lr": base_lr * m.lr,
            "weight_decay": base_decay * m.decay,
            "name": f"lr x {m.lr:g}",
        }
        for m, parameters in groups.items()
    ]
    if cls in FUSED and all(p.is_cuda for group in groups.values() for p in group):
        settings.setdefault("fused", True)  # otherwise the host counts the steps of every tensor
    try:
        with without_dynamo():
            optimizer: torch.optim.Optimizer = cls(made, lr=base_lr, **settings)
    except (TypeError, ValueError) as error:
        raise OptimError(f"optim_wrapper.optimizer: {error}") from error
    return optimizer


def freeze(model: nn.Module, optim_wrapper: Mapping[str, Any]) -> list[str]:
    """Switch gradients off where the learning rate is multiplied by 0, and on elsewhere.

    Returns:
        The names of the frozen parameters. After it, ``model.train()`` keeps the statistics of their batch
        norms.
    """
    frozen = []
    for name, factors in multipliers(model, optim_wrapper).items():
        model.get_parameter(name).requires_grad_(factors.lr != 0)
        if factors.lr == 0:
            frozen.append(name)
    model.train(model.training)
    return frozen


def multipliers(model: nn.Module, optim_wrapper: Mapping[str, Any]) -> dict[str, Multipliers]:
    """Return the multipliers of every parameter, by name.

    Raises:
        OptimError: an unknown key, or a custom key that matches no parameter.
    """
    custom = (read_wrapper(optim_wrapper).get("paramwise_cfg") or {}).get("custom_keys") or {}
    keys = sorted(sorted(custom), key=len, reverse=True)  # mmengine: longest first, then by alphabet
    names = [name for name, _ in model.named_parameters()]
    for key in keys:
        if not any(key in name for name in names):
            raise OptimError(f"optim_wrapper.paramwise_cfg.custom_keys: no parameter's name contains {key!r}")
    chosen = {name: next((key for key in keys if key in name), None) for name in names}
    return {name: _multipliers_of(custom[key]) if key else Multipliers() for name, key in chosen.items()}


def _multipliers_of(custom: Mapping[str, float]) -> Multipliers:
    return Multipliers(float(custom.get("lr_mult", 1.0)), float(custom.get("decay_mult", 1.0)))


def read_wrapper(optim_wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys and rates of ``optim_wrapper`` and return it as a dict; OptimError names a wrong one."""
    wrapper = dict(optim_wrapper)
    paramwise = wrapper.get("paramwise_cfg") or {}
    custom = paramwise.get("custom_keys") or {}
    kind = wrapper.get("type", "OptimWrapper")
    if kind not in ("OptimWrapper", AMP_WRAPPER):
        raise OptimError(f"optim_wrapper.type: expected 'OptimWrapper' or {AMP_WRAPPER!r}, got {kind!r}")
    if "loss_scale" in wrapper:
        raise OptimError(
            "optim_wrapper.loss_scale: training is bfloat16, whose range needs no loss scale; remove it, and "
            f"set type={AMP_WRAPPER!r} and dtype={AMP_DTYPE!r}"
        )
    known = WRAPPER_KEYS | ({"dtype"} if kind == AMP_WRAPPER else set())
    unread = [key for key in wrapper if key not in known]
    unread += [f"paramwise_cfg.{key}" for key in paramwise if key != "custom_keys"]
    unread += [
        f"paramwise_cfg.custom_keys.{name}.{key}"
        for name, keys in custom.items()
        for key in keys
        if key not in MULTIPLIER_KEYS
    ]
    if unread:
        names = ", ".join(unread)
        raise OptimError(f"optim_wrapper: unknown keys {names}; remove them or correct their names")
    if kind == AMP_WRAPPER and wrapper.get("dtype") != AMP_DTYPE:
        raise OptimError(
            f"optim_wrapper.dtype: expected {AMP_DTYPE!r}, which needs no loss scale, "
            f"got {wrapper.get('dtype')!r}"
        )
    optimizer = wrapper.get("optimizer") or {}
    if "lr" not in optimizer:
        raise OptimError("optim_wrapper.optimizer: expected a learning rate 'lr', got none")
    _check_number("lr", optimizer["lr"], "above 0")
    _check_number("weight_decay", optimizer.get("weight_decay", 0), "0 or more")
    count = wrapper.get("accumulative_counts", 1)
    if type(count) is not int or count < 1:
        raise OptimError(
            f"optim_wrapper.accumulative_counts: expected how many batches make a step, 1 or more, "
            f"got {count!r}"
        )
    return wrapper


def _check_number(key: str, value: object, least: str) -> None:
    """Refuse what is no finite number, or less than ``least``: "above 0" or "0 or more"."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and least == "above 0"):
        hint = "; YAML reads 1e-4 as text, write 1.0e-4" if isinstance(value, str) else ""
        raise OptimError(f"optim_wrapper.optimizer.{key}: expected a number, {least}, got {value!r}{hint}")


def is_amp(optim_wrapper: Mapping[str, Any]) -> bool:
    """Whether a config trains under bfloat16 autocast (``type='AmpOptimWrapper'``)."""
    return bool(read_wrapper(optim_wrapper).get("type") == AMP_WRAPPER)


def accumulative_counts(optim_wrapper: Mapping[str, Any]) -> int:
    """Return how many batches make one step of the optimiser: the gradient is their mean."""
    return int(read_wrapper(optim_wrapper).get("accumulative_counts", 1))


def clip_norm(optim_wrapper: Mapping[str, Any]) -> float | None:
    """Return the gradient norm of ``clip_grad=dict(max_norm=...)``; None if gradients are not clipped."""
    clip = read_wrapper(optim_wrapper).get("clip_grad")
    if not clip:
        return None
    if "max_norm" not in clip or set(clip) - {"max_norm", "norm_type"} or clip.get("norm_type", 2) != 2:
        raise OptimError(
            f"optim_wrapper.clip_grad: expected dict(max_norm=...) and the L2 norm, got {dict(clip)}"
        )
    return float(clip["max_norm"])
