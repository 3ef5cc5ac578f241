"""One training step, its learning rate and its random state, as functions of (settings, step).

Nothing a step does depends on what ran before it except weights and optimiser moments. That is what
makes a resumed run equal to an unbroken one, bit for bit, without storing generator states.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.plan import Plan
from pipeline.detector.openmmlab.data_samples import preprocess
from pipeline.detector.precision import autocast
from pipeline.errors import DivergedError
from pipeline.metrics.device_measure import DeviceMeasure, Transfer
from pipeline.metrics.recorder import Measure
from pipeline.runtime.gradient_mean import GradientMean
from pipeline.runtime.without_dynamo import without_dynamo

Prepared = dict[str, Any]
"""Arguments of the model: ``inputs`` with the features of the trunk, ``data_samples`` and ``divisors``."""

LAST_LR = 1e-3
"""What the cosine leaves of the learning rate at the end."""


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate at a step (from 0): linear warm-up, then cosine to 1e-3."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return LAST_LR + (1 - LAST_LR) * 0.5 * (1 + math.cos(math.pi * done))


def plan_of_step(plans: Sequence[Plan], seed: int, step: int) -> Plan:
    """Draw the plan a step trains, the same on every rank."""
    if len(plans) == 1:
        return plans[0]
    return plans[int(np.random.default_rng((seed, step)).integers(len(plans)))]


class Launched:
    """A training step whose numbers may still be on their way from the GPU.

    Args:
        transfer: its losses, what else is logged, and last the norm of the gradient.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._measures: list[Measure] | None = None

    def read(self) -> list[Measure]:
        """Return the numbers; the host waits until they are there.

        Returns:
            ``loss``, its parts, how the scale of the bias learns (``CmtDetector.bias_numbers``), and
            ``grad_norm`` (before clipping).

        Raises:
            DivergedError: loss or gradient is not finite.
        """
        if self._measures is None:
            self._measures = finite(self._transfer.read())
        return self._measures


class TrainStep:
    """A detector in training.

    Args:
        model: the bare detector, on its device.
        optimizer: over its parameters; its learning rates are the peaks.
        clip_norm: L2 norm to which all gradients together are cut.
        amp: bfloat16 autocast.
        distributed: several processes train the model, each on samples of its own, and their gradients are
            averaged; the process group is initialised.
        batches_per_step: a step runs so many batches one after the other, and its gradient is their mean
            (``accumulative_counts`` of the config).
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        amp: bool = False,
        distributed: bool = False,
        batches_per_step: int = 1,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batches_per_step = batches_per_step
        self._clip_norm = clip_norm
        self._amp = amp
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        # A fused optimiser can skip its update on the device, so that the host need not look before it.
        self._skips = all(group.get("fused") for group in optimizer.param_groups)
        self._mean = GradientMean(model, self._parameters, model.trunk_modules) if distributed else None

    def prepare(self, batch: Mapping[str, Any]) -> list[Prepared]:
        """Preprocess the batches of a step and run the trunk on them: what arms of a cohort have in common.

        Args:
            batch: what ``pipeline.detector.openmmlab.data_samples.collate`` made of the step's samples: those
                of ``batches_per_step`` batches.

        Returns:
            One for each batch; their features are in memory until the step has ended.
        """
        return [self._prepare(part) for part in split(batch, self.batches_per_step)]

    def _prepare(self, batch: Mapping[str, Any]) -> Prepared:
        divisors = self.model.loss_divisors(batch["data_samples"])  # the ranks exchange them meanwhile
        prepared = preprocess(self.model.data_preprocessor, batch, True)
        with autocast(next(self.model.parameters()).device.type, self._amp):
            trunk = self.model.run_trunk(prepared["inputs"])
        return {
            "inputs": {"trunk": trunk},
            "data_samples": prepared["data_samples"],
            "divisors": divisors,
        }

    def losses(self, prepared: Prepared) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and its parts for one batch that this model or another arm's has prepared."""
        with autocast(next(self.model.parameters()).device.type, self._amp):
            parts = self.model(**prepared, mode="loss")
        total = torch.stack(list(parts.values())).sum()
        return total, {"loss": total, **parts}

    def step(self, batch: Mapping[str, Any], factor: float | None) -> list[Measure]:
        """Make a step, and wait for its numbers: ``prepare``, ``launch`` and ``Launched.read``."""
        return self.launch(self.prepare(batch), factor).read()

    def launch(self, prepared: Sequence[Prepared], factor: float | None) -> Launched:
        """Make a step; with a fused optimiser, on a GPU, the host does not wait for the end.

        A step whose loss or gradient is not finite changes no weight, whenever its numbers are read.

        Args:
            prepared: what ``prepare`` made, of this model or of another arm's.
            factor: on every peak learning rate; None: a ``Schedule`` has set the rates.

        Raises:
            DivergedError: loss or gradient is not finite, and the optimiser is not fused. A loss that is not
                finite makes the gradient NaN, and the gradient is an average over the ranks. So all of them
                raise, and none waits for another.
        """
        if factor is not None:
            for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
        self.forget_gradients()
        losses, bias_numbers = self._backward(prepared)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        launched = Launched(Transfer([*losses, *bias_numbers, DeviceMeasure("grad_norm", "", norm)]))
        if self._skips:
            self.optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
        else:
            launched.read()
        with without_dynamo():
            self.optimizer.step()
        return launched

    def forget_gradients(self) -> None:
        """Drop the gradients, as the optimiser's ``zero_grad`` does, which would load TorchDynamo."""
        for parameter in self._parameters:
            parameter.grad = None

    def _backward(self, parts: Sequence[Prepared]) -> tuple[list[DeviceMeasure], list[DeviceMeasure]]:
        """Set the gradients of a step; return its losses, the total first, and its ``bias_numbers``."""
        losses: list[Tensor] = []
        numbers: list[list[DeviceMeasure]] = []
        for part in parts:
            total, logs = self.losses(part)
            share = total / len(parts) if len(parts) > 1 else total
            zero = share.detach() - share.detach()  # NaN if the loss is not finite: so are all gradients
            # A product and not a gradient to begin with: to check that one, autograd loads sympy.
            torch.autograd.backward(share * (zero + 1))
            losses.append(torch.stack([value.detach() for value in logs.values()]))
            numbers.append(self.model.bias_numbers())
        if self._mean:
            self._mean.average()
        means = losses[0] if len(losses) == 1 else torch.stack(losses).mean(dim=0)
        return [DeviceMeasure(name, "", mean) for name, mean in zip(logs, means, strict=True)], _summed(
            numbers
        )


def split(batch: Mapping[str, Any], count: int) -> Iterator[Mapping[str, Any]]:
    """Split what ``collate`` made into ``count`` batches of equal size; the last may be smaller."""
    samples, inputs = batch["data_samples"], batch["inputs"]
    size = max(1, -(-len(samples) // count))
    if count == 1 or size == len(samples):
        yield batch
        return
    for first in range(0, len(samples), size):
        part = slice(first, first + size)
        yield {
            "inputs": {key: values[part] for key, values in inputs.items()},
            "data_samples": samples[part],
        }


def _summed(numbers: Sequence[list[DeviceMeasure]]) -> list[DeviceMeasure]:
    """Return the bias numbers of a step from those after each of its batches.

    The gradient of the scale is summed over the batches by autograd. That of a site is of one batch only.
    """
    last = list(numbers[-1])
    for place, measure in enumerate(last):
        if measure.site and measure.metric == "bias_scale_grad":
            last[place] = replace(measure, value=torch.stack([part[place].value for part in numbers]).sum())
    return last


def finite(measures: list[Measure]) -> list[Measure]:
    """Return the measures of a step; DivergedError if loss or gradient are not finite."""
    if math.isfinite(loss_of(measures)) and math.isfinite(measures[-1].value):
        return measures
    names = (f"{m.metric} of {m.site}" if m.site else m.metric for m in measures)
    bad = [name for name, m in zip(names, measures, strict=True) if not math.isfinite(m.value)]
    raise DivergedError(f"not finite: {', '.join(bad)}; lower lr_scale or lengthen the warm-up")


def learning_rate(optimizer: torch.optim.Optimizer) -> Measure:
    """Return the largest learning rate of an optimiser, as the latest step had it."""
    return Measure("learning_rate", "", float(max(group["lr"] for group in optimizer.param_groups)))


def loss_of(measures: Sequence[Measure]) -> float:
    """Return the total loss among the measures of a step."""
    return next(measure.value for measure in measures if measure.metric == "loss")
