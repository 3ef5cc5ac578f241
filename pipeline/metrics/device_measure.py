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


class Transfer:
    """Measures on their way to the host, in one copy: a copy each would make the host wait each time.

    Args:
        measures: at least one; their values may be overwritten after this call.
    """

    def __init__(self, measures: Sequence[DeviceMeasure]) -> None:
        self._measures = measures
        values = torch.stack([m.value.detach() for m in measures])
        self._values = values.to("cpu", non_blocking=True)  # into pinned memory
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> list[Measure]:
        """Return the measures; the host waits until they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        values: list[float] = self._values.tolist()
        return [
            Measure(m.metric, m.unit, v, site=m.site) for m, v in zip(self._measures, values, strict=True)
        ]
