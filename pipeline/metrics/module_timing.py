"""Time the forward pass of a model's top-level modules.

On a GPU the times are taken between CUDA events, so the host never waits. The times of the modules do not add
up to the time of a step: losses, backward pass and optimiser are not in them.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.metrics.recorder import Measure

HEAD = "pts_bbox_head"
"""The module whose children are timed as well."""

SKIPPED = 3
"""First passes that are left out, because of lazy initialisation and autotuning."""


class ModuleTimer:
    """Times the forward pass of a model's modules, from its construction until ``measures`` is called.

    Args:
        model: a ``CmtDetector``.
        device: the device that the model runs on.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: dict[str, list[tuple[Any, Any]]] = {}
        parts = dict(model.named_children())
        inner = parts.get(HEAD, nn.Module()).named_children()
        parts |= {f"{HEAD}.{name}": part for name, part in inner}
        for holder in ("transformer", "task_heads"):  # the model calls their children, never them
            children = parts.pop(f"{HEAD}.{holder}", nn.Module()).named_children()
            parts |= {f"{HEAD}.{holder}.{name}": part for name, part in children}
        self._handles = []
        for name, part in parts.items():
            if any(True for _ in part.parameters()) or name.endswith("voxel_layer"):
                begun: list[Any] = []
                self._handles += [
                    part.register_forward_pre_hook(lambda *_, to=begun: to.append(self._now())),
                    part.register_forward_hook(
                        lambda *_, at=name, of=begun: self._marks.setdefault(at, []).append(
                            (of.pop(), self._now())
                        )
                    ),
                ]

    def measures(self, prefix: str) -> list[Measure]:
        """Stop timing and return ``<prefix>_module_ms/<module>`` per module, the median in milliseconds.

        Args:
            prefix: ``train`` or ``inference``.
        """
        for handle in self._handles:
            handle.remove()
        if self._cuda:
            torch.cuda.synchronize()
        measures = []
        for name, marks in self._marks.items():
            took = np.array([self._between(*pair) for pair in marks[SKIPPED:] or marks])
            low, middle, high = np.percentile(took, (20, 50, 80))
            half_iqr60 = float(high - low) / 2 if len(took) > 1 else float("nan")
            metric = f"{prefix}_module_ms/{name}"
            measures.append(Measure(metric, "ms", float(middle), half_iqr60=half_iqr60, n=len(took)))
        return measures

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def _between(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) if self._cuda else (last - first) * 1e3
