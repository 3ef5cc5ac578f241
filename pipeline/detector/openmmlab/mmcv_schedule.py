"""The learning rate and momentum of mmcv 1.x's ``lr_config`` and ``momentum_config``, step by step.

mmengine's own schedulers compute a value from the one before, and a cosine that follows another begins one
step late. Here each value is a formula of the step, as in mmcv's hooks, so that a migrated config trains with
the rates that it had. Both classes are registered for ``param_scheduler``, here and in mmengine's Runner.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

WARMUP_KEYS = ("warmup", "warmup_iters", "warmup_ratio", "warmup_by_epoch")


@dataclass(frozen=True)
class Moment:
    """A place in a training.

    Attributes:
        step: index of the batch, from 0.
        steps: batches of the whole training.
        epoch: batches in an epoch.
    """

    step: int
    steps: int
    epoch: float

    def progress(self, by_epoch: bool) -> tuple[int, int]:
        """Return how much is done, and of how much: in epochs, or in batches."""
        if by_epoch:
            return math.floor(self.step / self.epoch + 1e-9), round(self.steps / self.epoch)
        return self.step, self.steps


def _cosine(start: float, end: float, share: float) -> float:
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


def _poly(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    low = _lowest(base, keys)
    return (base - low) * (1 - done / whole) ** float(keys.get("power", 1.0)) + low


def _anneal(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    return _cosine(base, _lowest(base, keys), done / whole)


def _cyclic(base: float, keys: Mapping[str, Any], done: int, whole: int) -> float:
    ratios = keys.get("target_ratio", (10, 1e-4))
    ratios = ratios if isinstance(ratios, Sequence) else (ratios,)
    peak, end = (*ratios, ratios[0] / 1e5)[:2]
    length = whole // int(keys.get("cyclic_times", 1))
    up = int(float(keys.get("step_ratio_up", 0.4)) * length)
    at = done % length
    if at < up:
        return _cosine(base, base * peak, at / up)
    return _cosine(base * peak, base * end, (at - up) / (length - up))


POLICIES: Mapping[str, tuple[Callable[[float, Mapping[str, Any], int, int], float], tuple[str, ...]]] = {
    "fixed": (_fixed, ()),
    "step": (_step, ("step", "gamma", "min_lr")),
    "exp": (_exp, ("gamma",)),
    "poly": (_poly, ("power", "min_lr")),
    "CosineAnnealing": (
        _anneal,
        ("min_lr", "min_lr_ratio", "min_momentum", "min_momentum_ratio"),
    ),
    "cyclic": (_cyclic, ("target_ratio", "cyclic_times", "step_ratio_up")),
}
"""Policy of mmcv -> its value from (base, keys, done, whole), and the keys that it reads."""


def check_policy(config: Mapping[str, Any]) -> None:
    """Refuse an ``lr_config`` or ``momentum_config`` that is not computed here.

    Raises:
        ValueError: an unknown policy or key, in one sentence.
    """
    policy = str(config.get("policy"))
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is not computed; expected one of {', '.join(POLICIES)}")
    known = {"policy", "by_epoch", *WARMUP_KEYS, *POLICIES[policy][1]}
    unread = [key for key in config if key not in known]
    if unread:
        raise ValueError(f"policy {policy!r} does not read {', '.join(unread)}; remove it")


def value_of(config: Mapping[str, Any], base: float, moment: Moment) -> float:
    """Return the value of a learning rate or momentum at a step.

    Args:
        config: ``lr_config`` or ``momentum_config`` of mmcv 1.x.
        base: the value in the optimiser's config.
        moment: the step.
    """
    by_epoch = bool(config.get("by_epoch", config["policy"] != "cyclic"))
    regular = POLICIES[config["policy"]][0](base, config, *moment.progress(by_epoch))
    kind, length = config.get("warmup"), config.get("warmup_iters", 0)
    length *= moment.epoch if config.get("warmup_by_epoch") else 1
    if kind is None or moment.step >= length:
        return regular
    ratio, share = float(config.get("warmup_ratio", 0.1)), moment.step / length
    factors = {"constant": ratio, "linear": 1 - (1 - share) * (1 - ratio), "exp": ratio ** (1 - share)}
    return float(regular * factors[kind])


class _MmcvSchedule(_ParamScheduler):
    """Sets a value of every group of an optimiser as mmcv's hook does.

    Args:
        optimizer: its values are the bases.
        config: ``lr_config`` or ``momentum_config``.
        end: batches of the whole training.
        batches_per_epoch: needed where the config counts epochs. (mmengine drops a key ``epoch_length``.)
        by_epoch: must be False: a schedule counts batches.
    """

    def __init__(
        self,
        optimizer: Any,
        *args: Any,
        config: Mapping[str, Any],
        end: int,
        batches_per_epoch: float | None = None,
        by_epoch: bool = False,
        **kwargs: Any,
    ) -> None:
        check_policy(config)
        if by_epoch:
            raise ValueError(
                "by_epoch=True needs convert_to_iter_based=True, because mmcv counts batches too"
            )
        self._config, self._steps, self._epoch = dict(config), end, batches_per_epoch or float(end)
        super().__init__(optimizer, *args, end=end, by_epoch=False, **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls, *args: Any, end: int, epoch_length: float, by_epoch: bool = True, **kwargs: Any
    ) -> "_MmcvSchedule":
        """Make a schedule whose ``end`` counts epochs, as mmengine's Runner does it."""
        return cls(*args, end=round(end * epoch_length), batches_per_epoch=epoch_length, **kwargs)

    def _get_value(self) -> list[float]:
        moment = Moment(self.last_step, self._steps, self._epoch)
        return [value_of(self._config, base, moment) for base in self.base_values]


@PARAM_SCHEDULERS.register_module()
class MmcvLR(LRSchedulerMixin, _MmcvSchedule):
    """The learning rate of an ``lr_config`` of mmcv 1.x."""


@PARAM_SCHEDULERS.register_module()
class MmcvMomentum(MomentumSchedulerMixin, _MmcvSchedule):
    """The momentum, or Adam's first beta, of a ``momentum_config`` of mmcv 1.x."""
