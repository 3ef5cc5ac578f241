"""Optimiser, schedule and length of a config of mmcv 1.x as today's."""

from collections.abc import Mapping
from typing import Any

from experiments.lint.migration.lost import Ledger
from pipeline.config.provenance import Key
from pipeline.detector.openmmlab.mmcv_policies import check_policy
from pipeline.detector.openmmlab.optimizer import MULTIPLIER_KEYS

HALF = ("Fp16OptimizerHook", "CustomFp16OptimizerHook", "GradientCumulativeFp16OptimizerHook")


def optim_wrapper(old: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Return ``optim_wrapper`` from ``optimizer``, ``optimizer_config`` and ``fp16``."""
    optimizer = dict(old.get("optimizer") or {})
    hook = dict(old.get("optimizer_config") or {})
    paramwise = dict(optimizer.pop("paramwise_cfg", None) or {})
    optimizer.pop("constructor", None)
    made: dict[str, Any] = {"type": "OptimWrapper"}
    if old.get("fp16") or str(hook.get("type")) in HALF:
        made = {"type": "AmpOptimWrapper", "dtype": "bfloat16"}
    made |= {"constructor": "CmtOptimWrapperConstructor", "optimizer": optimizer}
    custom = paramwise.pop("custom_keys", None)
    _lose(old, hook, paramwise, ledger)
    if custom:
        kept = {name: {k: v for k, v in m.items() if k in MULTIPLIER_KEYS} for name, m in custom.items()}
        made["paramwise_cfg"] = {"custom_keys": kept}
    if hook.get("grad_clip"):
        made["clip_grad"] = dict(hook["grad_clip"])
    if hook.get("cumulative_iters", 1) > 1:
        made["accumulative_counts"] = int(hook["cumulative_iters"])
    return made


def _lose(
    old: Mapping[str, Any], hook: Mapping[str, Any], paramwise: Mapping[str, Any], ledger: Ledger
) -> None:
    """List what of the optimiser has no counterpart."""
    scaled = [name for name in ("fp16", "optimizer_config") if "loss_scale" in (old.get(name) or {})]
    if scaled:
        ledger.lose(
            (scaled[0], "loss_scale"),
            "loss_scale is left out: training is bfloat16, whose range needs no loss scale",
        )
    if "custom_fp16" in hook:
        ledger.lose(
            ("optimizer_config", "custom_fp16"),
            "custom_fp16 is left out: autocast decides by operation; the sparse encoder, positions and task "
            "heads keep what they need of single precision",
        )
    for key in paramwise:
        ledger.lose(
            ("optimizer", "paramwise_cfg", key),
            f"{key} is left out: only custom_keys has a counterpart",
            True,
        )


def length(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``train_cfg`` from ``runner`` or ``total_epochs``, with the interval of ``evaluation``."""
    runner = old.get("runner") or {}
    if "max_iters" in runner:
        return {"type": "IterBasedTrainLoop", "max_iters": int(runner["max_iters"])}
    epochs = int(runner.get("max_epochs", old.get("total_epochs", 20)))
    every = int((old.get("evaluation") or {}).get("interval", 1))
    return {"by_epoch": True, "max_epochs": epochs, "val_interval": min(every, epochs)}


def schedule(old: Mapping[str, Any], ledger: Ledger) -> list[dict[str, Any]]:
    """Return ``param_scheduler``: ``MmcvLR`` and ``MmcvMomentum`` have the old values at every step."""
    made = []
    counted = length(old)
    over: dict[str, Any] = {"begin": 0, "end": counted.get("max_epochs"), "by_epoch": True}
    over["convert_to_iter_based"] = True
    if "max_iters" in counted:
        over = {"begin": 0, "end": counted["max_iters"], "by_epoch": False}
    for section, kind in (("lr_config", "MmcvLR"), ("momentum_config", "MmcvMomentum")):
        config = _in_full(old.get(section))
        if not config:
            continue
        try:
            check_policy(config, section == "momentum_config")
        except ValueError as error:
            ledger.lose((section,), f"{section} is left out: {error}", True)
            continue
        made.append({"type": kind, "config": config, **over})
    return made


def _in_full(config: Any) -> dict[str, Any]:
    """Return a schedule's config without the keys that have mmcv's default and no effect."""
    given = dict(config or {})
    for key, value in {"anneal_strategy": "cos", "gamma": 1.0, "warmup": None}.items():
        if given.get(key, ...) == value and not (key == "gamma" and given.get("policy") != "cyclic"):
            given.pop(key)
    if "warmup" not in given:
        given = {key: value for key, value in given.items() if not key.startswith("warmup")}
    return given


def hooks(old: Mapping[str, Any], ledger: Ledger) -> list[dict[str, Any]]:
    """Return ``custom_hooks``: the one that ends GT sampling, and the one that averages weights."""
    made = []
    for place, hook in enumerate(old.get("custom_hooks") or ()):
        kind = str(hook.get("type"))
        if kind == "DisableObjectSampleHook":
            made.append(dict(hook))
        elif kind == "EMAHook":
            made.append(_average(hook, ("custom_hooks", place), ledger))
        elif kind != "NumClassCheckHook":
            ledger.lose(
                ("custom_hooks", place),
                f"the hook {kind} is left out: this loop follows EMAHook and DisableObjectSampleHook alone",
                True,
            )
    return made


def _average(hook: Mapping[str, Any], at: Key, ledger: Ledger) -> dict[str, Any]:
    """Return mmengine's ``EMAHook``. mmcv 1.x takes the momentum to the power of the interval."""
    momentum, interval = float(hook.get("momentum", 0.0002)), int(hook.get("interval", 1))
    ledger.lose(
        at, "EMAHook's average begins with the weights after the first step, not with those before it", True
    )
    if momentum**interval * float(hook.get("warm_up", 100)) > 1:
        ledger.lose(
            (*at, "warm_up"), "warm_up of EMAHook is left out: the momentum is above 1 / warm_up", True
        )
    made = {"type": "EMAHook", "momentum": momentum**interval}
    return made if interval == 1 else {**made, "interval": interval}
