"""The error budget passes what is right and catches what is subtly wrong."""

import pytest
import torch

from operators.impl import reference
from operators.testing.cases import Sizes, make_case
from operators.testing.oracle import make_oracle, results

SIZES = Sizes(1, 2, 33, 32, bev=(7, 9), cameras=(2, 3, 5), window=(4, 3))
SCALE = 32**-0.5


def run(case, change=lambda q, k, v, bias: (q, k, v, bias), scale=SCALE):
    leaves = {n: leaf.clone().requires_grad_() for n, leaf in case.leaves.items()}
    bias = case.bias(leaves["weight"]).dense(case.leaves["q"].dtype)
    q, k, v, bias = change(leaves["q"], leaves["k"], leaves["v"], bias)
    return results(reference.forward(q, k, v, scale=scale, bias=bias), leaves, case.upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["global", "window", "gaussian", "dense"])
def test_passes_the_reference_itself(kind, dtype):
    case = make_case(kind, SIZES, dtype)
    make_oracle(case.leaves, case.bias, case.upstream).check(run(case))


def test_passes_a_kernel_that_rounds_its_probabilities_for_the_tensor_core():
    one = Sizes(1, 1, 1, 64, bev=(4, 5), cameras=(1, 2, 3), window=(5, 5))  # no average over queries helps
    for seed in range(30):
        case = make_case("window", one, torch.bfloat16, seed=seed)
        leaves = {name: leaf.float() for name, leaf in case.leaves.items()}
        weight = leaves["weight"].requires_grad_()
        bias = case.bias(weight).dense(torch.float32)
        p = torch.softmax(leaves["q"] @ leaves["k"].mT / 8 + bias.detach(), dim=-1)
        upstream = case.upstream.bfloat16().float()
        share = ((p.bfloat16().float() @ leaves["v"]) * upstream).sum(dim=-1, keepdim=True)
        (found,) = torch.autograd.grad(bias, weight, p * (upstream @ leaves["v"].mT - share))
        make_oracle(case.leaves, case.bias, case.upstream).check({"dweight": found.bfloat16()})


BREAKAGES = {
    "scale dropped": {"scale": 1.0},
    "scale off by a thousandth": {"scale": SCALE * 1.001},
    "bias dropped": {"change": lambda q, k, v, bias: (q, k, v, bias * 0)},
    "bias negated": {"change": lambda q, k, v, bias: (q, k, v, -bias)},
    "bias off by a thousandth": {"change": lambda q, k, v, bias: (q, k, v, bias * 1.001)},
    "window moved by one key": {"change": lambda q, k, v, bias: (q, k, v, bias.roll(1, -1))},
    "last key lost": {"change": lambda q, k, v, bias: (q, k[:, :, :-1], v[:, :, :-1], bias[..., :-1])},
    "no gradient to the bias": {"change": lambda q, k, v, bias: (q, k, v, bias.detach() + 0 * bias)},
    "rounded through bfloat16": {"change": lambda q, k, v, bias: (q.bfloat16().float(), k, v, bias)},
}


@pytest.mark.parametrize("broken", BREAKAGES.values(), ids=BREAKAGES.keys())
def test_catches_breakage(broken):
    case = make_case("window", SIZES, torch.float32)
    with pytest.raises(AssertionError, match="error over its budget"):
        make_oracle(case.leaves, case.bias, case.upstream).check(run(case, **broken))


def test_nan_is_over_any_budget():
    case = make_case("window", SIZES, torch.float32)
    actual = run(case)
    actual["dq"][0, 0, 0, 0] = torch.nan
    with pytest.raises(AssertionError, match="dq inf times"):
        make_oracle(case.leaves, case.bias, case.upstream).check(actual)
