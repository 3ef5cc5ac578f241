"""The parts of a training step that a plan changes, each alone: cross-attentions, and AQR.

A whole step is many times longer than what a plan changes in it, and its noise hides the difference. So the
inputs of a part are recorded in a training step, and the part then runs alone on them, forward and backward.
Parts run kernel by kernel, hence on a CPU only: on a GPU a step runs them inside CUDA graphs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.plan import Choice, Plan
from pipeline.training.timed_model import TimedModel

AQR = "aqr"
"""Site of the rows about the weight generator and the bias generator together."""

GENERATOR = "generator"

Call = Callable[[], object]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module."""


@dataclass(frozen=True)
class Part:
    """A part under one choice.

    Attributes:
        site: the attention site, or ``AQR``.
        plan: a plan under which a step runs it like this.
        run: runs it forward and backward, under the plan that the model has.
    """

    site: str
    plan: Plan
    run: Call


def record_parts(timed: TimedModel, plans: Sequence[Plan]) -> list[Part]:
    """Record the parts, in as few training steps as show every choice of every site.

    Args:
        timed: the model; it is in training mode afterwards.
        plans: resolved ones.

    Returns:
        Every site whose choice differs between the plans under each of its choices, and AQR, if a plan uses
        it. Empty on a GPU, or if no plan has a bias.
    """
    by_biases = sorted(plans, key=_num_biases, reverse=True)
    fullest = by_biases[0]
    if timed.device.type == "cuda" or not _num_biases(fullest):
        return []
    head = timed.model.pts_bbox_head
    sites = {site: module for site, module in head.sites.items() if len(_choices(plans, site)) > 1}
    recorded: dict[tuple[str, Choice], Inputs] = {}
    around: dict[str, Inputs] = {}
    for plan in by_biases:
        new = [site for site in sites if plan[site].bias != "none" and (site, plan[site]) not in recorded]
        if new:
            inputs = _record(timed, plan, {**sites, AQR: head.aqr, GENERATOR: head.bias_generator})
            recorded |= {(site, plan[site]): inputs[site] for site in new}
            around = around or inputs
    parts = [
        Part(site, plan, partial(_attend, sites[site], recorded.get((site, choice), around[site])))
        for site in sites
        for choice, plan in _choices(plans, site).items()
    ]
    generate = partial(_generate, (head.aqr, around[AQR]), (head.bias_generator, around[GENERATOR]))
    return [*parts, Part(AQR, fullest, generate)]


def _num_biases(plan: Plan) -> int:
    return sum(choice.bias not in ("none", "local") for _, choice in plan.choices)


def _choices(plans: Sequence[Plan], site: str) -> dict[Choice, Plan]:
    """Return every choice of a site, and the first plan that has it."""
    found: dict[Choice, Plan] = {}
    for plan in plans:
        found.setdefault(plan[site], plan)
    return found


def _record(timed: TimedModel, plan: Plan, modules: Mapping[str, nn.Module]) -> dict[str, Inputs]:
    """Train one step under a plan; return the arguments of each module that ran."""
    inputs: dict[str, Inputs] = {}
    timed.use(plan, 0)
    with ExitStack() as stack:
        for name, module in modules.items():

            def keep(_: nn.Module, args: Any, kwargs: Any, at: str = name) -> None:
                inputs[at] = _cut_off((args, kwargs))

            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        timed.train()
    timed.restore()
    return inputs


def _attend(module: Any, inputs: Inputs) -> None:
    """Run an attention forward and backward under the choice that it has; without a bias it gets none."""
    args, kwargs = inputs
    given = kwargs if module.choice.bias != "none" else {**kwargs, "bias": None}
    _differentiate(module(*args, **given), (args, given), [module])


def _generate(aqr: tuple[Any, Inputs], generator: tuple[Any, Inputs]) -> None:
    """Run the weight generator and the bias generator forward and backward."""
    (weigh, weighed), (make, made) = aqr, generator
    args, kwargs = made
    kinds, _, *others = args
    weights = weigh(*weighed[0], **weighed[1])
    biases = make(kinds, weights, *others, **kwargs)
    _differentiate([weights, biases], (weighed, others), [weigh, make])


def _differentiate(results: Any, inputs: Any, modules: Sequence[nn.Module]) -> None:
    """Compute the gradients of inputs and parameters, as a backward pass does."""
    outputs = [x for x in _tensors(results) if x.requires_grad]
    sources = [x for x in _tensors(inputs) if x.requires_grad]
    sources += [p for module in modules for p in module.parameters() if p.requires_grad]
    seeds = [torch.ones_like(x) for x in outputs]
    torch.autograd.grad(outputs, list(dict.fromkeys(sources)), seeds, allow_unused=True)


def _cut_off(value: Any) -> Any:
    """Return a copy of nested values whose tensors are in no graph; they need gradients as before."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: _cut_off(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cut_off(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _cut_off(getattr(value, field.name)) for field in fields(value)})
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
