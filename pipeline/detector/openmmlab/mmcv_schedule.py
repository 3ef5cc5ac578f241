"""The learning rate and momentum of mmcv 1.x's ``lr_config`` and ``momentum_config``, step by step.

mmengine's own schedulers compute a value from the one before, and a cosine that follows another begins one
step late. Here each value is a formula of the step, as in mmcv's hooks, so that a migrated config trains with
the rates that it had. Both classes are registered for ``param_scheduler``, here and in mmengine's Runner.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.momentum_scheduler import MomentumSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from pipeline.detector.openmmlab.mmcv_policies import MOMENTUM_DEFAULTS, POLICIES, check_policy


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


def value_of(config: Mapping[str, Any], base: float, moment: Moment) -> float:
    """Return the value of a learning rate or momentum at a step.

    Args:
        config: ``lr_config`` or ``momentum_config`` of mmcv 1.x.
        base: the value in the optimiser's config.
        moment: the step.
    """
    policy = POLICIES[config["policy"]]
    by_epoch = bool(config.get("by_epoch", policy.by_epoch))
    regular = policy.value(base, config, *moment.progress(by_epoch))
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

    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

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
        check_policy(config, bool(self.DEFAULTS))
        if by_epoch:
            raise ValueError(
                "by_epoch=True needs convert_to_iter_based=True, because mmcv counts batches too"
            )
        self._config = {**self.DEFAULTS.get(config["policy"], {}), **config}
        self._steps, self._epoch = end, batches_per_epoch or float(end)
        value_of(
            self._config, 1.0, Moment(end - 1, end, self._epoch)
        )  # a schedule that ends early is refused
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

    DEFAULTS = MOMENTUM_DEFAULTS
