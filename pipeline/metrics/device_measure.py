"""Measures whose values are still on the device, and how many of them are read with one transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.metrics.recorder import Measure


@dataclass(frozen=True)
class DeviceMeasure:
    """One number on the device; ``value`` is a tensor of one element, other fields are as in ``Row``."""

    metric: str
    unit: str
    value: Tensor
    site: str = ""


def to_host(measures: Sequence[DeviceMeasure]) -> list[Measure]:
    """Read all values in one transfer: a transfer for each would make the host wait for the GPU each time."""
    values: list[float] = torch.stack([m.value.detach() for m in measures]).tolist()
    return [Measure(m.metric, m.unit, v, site=m.site) for m, v in zip(measures, values, strict=True)]
