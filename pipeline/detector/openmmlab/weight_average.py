"""The average of the weights that a config's ``EMAHook`` asks for, computed by mmengine's own classes.

Only what the optimiser trains is averaged, as under mmengine's hook with ``update_buffers=False``: frozen
weights are equal to their average, and buffers are those of the model.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from pipeline.config.sections import EMA_KEYS, EMA_TYPES, hooks_of

_LOG = logging.getLogger(__name__)


def read_average(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what averages the weights: a config of ``MODELS``; None if no hook of the config asks for it.

    Args:
        config: the config as plain dicts and lists; ``pipeline.config.sections.refusals`` has none for it.
    """
    found = [dict(hook) for _, name, hook in hooks_of(config) if name == "EMAHook"]
    if not found:
        return None
    kind = str(found[-1].get("ema_type", "ExponentialMovingAverage")).rpartition(".")[2]
    return {"type": EMA_TYPES[kind], **{key: found[-1][key] for key in EMA_KEYS if key in found[-1]}}


class WeightAverage:
    """The average of a model's weights over the steps of its training; without a config, the weights.

    Args:
        model: the bare detector, on its device.
        optimizer: names the parameters that are averaged.
        config: what ``read_average`` returned; None: nothing is averaged, and all methods do nothing.

    Attributes:
        tensors: the averages by the names of their parameters, and how many steps they hold. A checkpoint
            keeps them, and fills them in place.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any] | None
    ) -> None:
        self._weights, self._averages = nn.ParameterList(), list[Tensor]()
        self.tensors: dict[str, Tensor] = {}
        if config is None:
            return
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._weights.extend(parameter for group in optimizer.param_groups for parameter in group["params"])
        self._module = MODELS.build({**config, "model": self._weights})
        self._averages = [average.data for average in self._module.module.parameters()]
        named = zip((names[id(weight)] for weight in self._weights), self._averages, strict=True)
        self.tensors = {"steps": self._module.steps, **dict(named)}
        size = sum(average.numel() * average.element_size() for average in self._averages)
        _LOG.info("the averages of the weights take %.1f MB on %s", size / 1e6, self._averages[0].device)

    def update(self, batches: int = 1) -> None:
        """Take the weights into the average once a batch; on a GPU the host does not wait."""
        for _ in range(batches if self._averages else 0):
            self._module.update_parameters(self._weights)

    @torch.no_grad()
    def put(self) -> None:
        """Give the model the average for good."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.copy_(average)

    @contextmanager
    def in_effect(self) -> Iterator[None]:
        """Give the model the average, and afterwards its own weights again."""
        own = [weight.detach().clone() for weight in self._weights]
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, kept in zip(self._weights, own, strict=True):
                    weight.copy_(kept)
