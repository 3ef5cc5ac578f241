"""What is compared in the window-pass study, and the errors of all of it against the float64 reference."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from passes import Plan, attend
from torch import Tensor

from operators.api import attention
from operators.bench.shapes import REAL
from operators.impl import flash
from operators.testing.cases import Case, Sizes, make_case, poisoned_memory
from operators.testing.oracle import make_oracle

SHAPES = ("r50 B2 Q1500", "vov B2 Q1500", "r50 B1 Q900", "vov B1 Q900")
MODES = ("forward", "forward + backward")

How = str | Plan
"""An implementation, or a plan of a window pass."""

GROUPS: dict[str, list[tuple[str, How]]] = {
    "peers": [("none", name) for name in ("rects", "flash", "sdpa_flash", "sdpa_cudnn")],
    "rects": [("window", "rects"), *(("window", Plan("rects", size)) for size in ("small", "large"))],
    "small": [("window", Plan(name, "small")) for name in ("flash", "sdpa_cudnn", "sdpa_flash")],
    "large": [
        *(("window", Plan(name)) for name in ("flash", "sdpa_cudnn", "sdpa_flash")),
        ("window", Plan("flash", beside=False)),
    ],
}
"""Bias kind and how, by the process that compiles and checks them."""

COVERED = Sizes(1, 2, 64, 32, bev=(16, 16), cameras=(1, 4, 8), window=(31, 31), placement="one_cell")
"""Windows that hold all keys: with negative weights the window pass takes away nearly all it is added to."""

TINY = (
    Sizes(1, 2, 70, 16, bev=(12, 12), cameras=(2, 4, 6), window=(3, 3)),
    Sizes(2, 2, 33, 32, bev=(13, 9), cameras=(2, 5, 7), window=(4, 5), bias_per_head=True),
    Sizes(1, 1, 20, 16, bev=(9, 9), cameras=(1, 3, 5), window=(5, 4), placement="borders"),
    Sizes(1, 2, 7, 16, bev=(8, 8), cameras=(1, 3, 5), placement="nowhere"),
)


def contenders(group: str) -> list[tuple[str, How]]:
    """Return the contenders of a group that this machine has."""
    absent = set() if "flash-attn-4" in flash.installed() else {"flash"}
    return [(kind, how) for kind, how in GROUPS[group] if getattr(how, "backend", how) not in absent]


def caller(case: Case, how: How, mode: str) -> Callable[[], dict[str, Tensor]]:
    """Return a function that runs a case once and returns its output and gradients by name."""
    grad = mode != MODES[0]
    leaves = {name: leaf.detach().clone().requires_grad_(grad) for name, leaf in case.leaves.items()}

    def call() -> dict[str, Tensor]:
        for leaf in leaves.values():
            leaf.grad = None
        with torch.set_grad_enabled(grad):
            bias: Any = case.bias(leaves.get("weight"))
            q, k, v = (leaves[name] for name in "qkv")
            out = attention(q, k, v, bias, impl=how) if isinstance(how, str) else attend(q, k, v, bias, how)
        if grad:
            torch.autograd.backward(out, case.upstream)
        return {"out": out} | {f"d{n}": leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}

    return call


def reason(error: Exception) -> str:
    """Return the kind and the beginning of the text of an error."""
    return f"{type(error).__name__}: {str(error)[:300]}"


def last_head(case: Case) -> Case:
    """Return the last head of the last sample of a case, and leave no gradient to the others in the case.

    A whole shape is then compared with a reference that fits in memory, the weights' gradient included.
    """
    part = case.upstream[-1:, -1:].clone()
    case.upstream.zero_()[-1:, -1:] = part
    leaves = {name: leaf[-1:] if name == "weight" else leaf[-1:, -1:] for name, leaf in case.leaves.items()}
    sizes = replace(case.sizes, batch=1, heads=1)
    return Case(case.kind, sizes, leaves, case.windows[-1:], case.centers[-1:], part)


def budget_used(case: Case, part: Case, hows: list[How]) -> Iterator[tuple[How, float | str, str]]:
    """Yield for each contender its largest error over its budget on a part of a case, and where that is."""
    oracle = make_oracle(part.leaves, part.bias, part.upstream)
    if case.leaves["q"].is_cuda:
        torch.cuda.empty_cache()
    for how in hows:
        try:
            caller(case, how, MODES[0])()  # compiles what the timing of the forward pass needs
            call = caller(case, how, MODES[1])
            with poisoned_memory(case.leaves["q"].device):
                actual = call()
            samples, heads = part.sizes.batch, part.sizes.heads
            cut = {n: t[-samples:] if n == "dweight" else t[-samples:, -heads:] for n, t in actual.items()}
            used = oracle.used(cut)
            worst = max(used, key=lambda name: used[name])
            yield how, used[worst], worst
        except Exception as error:  # noqa: BLE001  one that fails must not cost the others
            yield how, reason(error), ""


def covered(dtype: torch.dtype, device: str) -> Case:
    """Return the case whose windows hold all keys, with all weights at -5."""
    case = make_case("window", COVERED, dtype, device)
    case.leaves["weight"].fill_(-5.0)
    return case


def check_small() -> int:
    """Compare small cases in float32 with the reference, on this CPU; return the exit code."""
    plans: list[How] = [Plan("math"), Plan("rects")]
    failed = False
    for sizes in TINY:
        case = make_case("window", sizes, torch.float32)
        for how, used, worst in budget_used(case, case, plans):
            failed |= not (isinstance(used, float) and used <= 1)
            print(f"{sizes}: {how}: {used} {worst}", flush=True)
    case = covered(torch.float32, "cpu")
    for how, used, worst in budget_used(case, case, [*plans, "rects"]):
        print(f"all keys in windows, weights -5: {how}: {used} {worst}", flush=True)
    return int(failed)


def check_group(shape: str, group: str, file: Path) -> None:
    """Compare a group with float64 at a whole shape.

    Every finding is a line of JSON in ``file``: shape, kind, contender, error over budget or why none, where.
    """
    kind, names = GROUPS[group][0][0], [how for _, how in contenders(group)]
    with file.open("w", encoding="utf-8") as lines:
        case = make_case(kind, REAL[shape], torch.bfloat16, "cuda")
        for how, used, worst in budget_used(case, last_head(case), names):
            lines.write(json.dumps([shape, kind, str(how), used, worst]) + "\n")
            lines.flush()
        if shape == SHAPES[0] and kind == "window":
            case = covered(torch.bfloat16, "cuda")
            for how, used, worst in budget_used(case, case, names):
                lines.write(
                    json.dumps(["all keys in windows, weights -5", kind, str(how), used, worst]) + "\n"
                )
                lines.flush()


if __name__ == "__main__":
    check_group(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
