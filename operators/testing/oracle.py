"""Expected results of attention and their error budgets. No tolerance is chosen by hand.

A result is compared with the reference in float64. Its error budget is twice the sum of four terms:

1. the error of the reference when it computes in the dtype under test;
2. one rounding step of the largest value, in that dtype;
3. one float32 step of every score, carried through the formula. Kernels add up in float32 in their own order,
   and recompute probabilities as exp(score - log-sum-exp);
4. the rounding of the output from which the backward pass takes D = rowsum(dO * O) = rowsum(P * dP), carried
   through likewise. A kernel stores the output in the dtype. Or it keeps the output in float32, after a
   product of V with probabilities rounded to the dtype, which is what tensor cores take.

Terms 1 and 2 are the rule of Dao-AILab/flash-attention's tests. Terms 3 and 4 are first-order error analysis.
Term 3 matters in float32 only, where a correct kernel could otherwise fail because of its order of summation.
Term 4 matters in half precision, where the gradient of a bias over many keys is a small difference of large
sums. Without it, the textbook kernel fails one in thirteen draws of a single query whose window holds nearly
all keys.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from operators.forms import Bias
from operators.impl import reference

BiasOf = Callable[[Tensor | None], Bias | None]
"""Builds a bias around a weight, in the dtype of the weight."""


@dataclass(frozen=True, eq=False)
class Oracle:
    """Expected results and their error budgets.

    Attributes:
        exact: results in float64, by name.
        allowed: largest allowed absolute error, by name.
    """

    exact: dict[str, Tensor]
    allowed: dict[str, float]

    def used(self, actual: dict[str, Tensor]) -> dict[str, float]:
        """Return by name the error over its budget: at most 1 is correct. It is infinite for NaN."""
        ratios = {}
        for name, value in actual.items():
            error = (value.double() - self.exact[name]).abs().max().item()
            ratios[name] = math.inf
            if error == 0:
                ratios[name] = 0.0
            elif self.allowed[name] > 0 and math.isfinite(error):
                ratios[name] = error / self.allowed[name]
        return ratios

    def check(self, actual: dict[str, Tensor]) -> None:
        """Check that all errors are within their budgets.

        Raises:
            AssertionError: names the results that are not.
        """
        over = [f"{name} {ratio:.3g} times" for name, ratio in self.used(actual).items() if not ratio <= 1]
        assert not over, "error over its budget: " + ", ".join(over)


def make_oracle(leaves: dict[str, Tensor], bias_of: BiasOf, upstream: Tensor | None = None) -> Oracle:
    """Compute the expected results and their error budgets.

    Args:
        leaves: ``q``, ``k``, ``v``, and ``weight`` if the bias has one.
        bias_of: builds the bias from the weight.
        upstream: (B, H, Q, D), the gradient of the result; None: no gradients are computed.
    """
    doubles = {name: leaf.double() for name, leaf in leaves.items()}
    exact = _eager(doubles, bias_of, upstream)
    eager = _eager(leaves, bias_of, upstream)
    rounding = torch.finfo(leaves["q"].dtype).eps / 2  # half a step, by rounding to nearest
    carried = _carried(doubles, bias_of, upstream, rounding)
    allowed = {}
    for name, expected in exact.items():
        dtype = leaves["q" if name == "out" else name.removeprefix("d")].dtype
        error = (eager[name].double() - expected).abs().max().item()
        step = torch.finfo(dtype).eps * expected.abs().max().item()
        allowed[name] = 2 * (error + step + carried[name])
    return Oracle(exact, allowed)


def results(out: Tensor, leaves: dict[str, Tensor], upstream: Tensor | None) -> dict[str, Tensor]:
    """Return ``out`` and, if ``upstream`` is given, the gradients ``dq``, ``dk``, ``dv`` and ``dweight``."""
    named = {"out": out.detach()}
    if upstream is not None:
        torch.autograd.backward(out, upstream.to(out.dtype))
        named |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return named


def _eager(leaves: dict[str, Tensor], bias_of: BiasOf, upstream: Tensor | None) -> dict[str, Tensor]:
    """Run the reference."""
    own = {name: leaf.detach().clone().requires_grad_(upstream is not None) for name, leaf in leaves.items()}
    bias = bias_of(own.get("weight"))
    dense = None if bias is None else bias.dense(own["q"].dtype)
    out = reference.forward(own["q"], own["k"], own["v"], scale=own["q"].shape[-1] ** -0.5, bias=dense)
    return results(out, own, upstream)


def _carried(
    doubles: dict[str, Tensor], bias_of: BiasOf, upstream: Tensor | None, rounding: float
) -> dict[str, float]:
    """Carry one float32 step of every score, and ``rounding`` of the output, through the formula.

    A probability P = exp(S - L) is then off by P (1 + |S| + |L|) steps. The slope dS = P (dP - share) has the
    same relative error, plus one step of the two dot products dP and share. The rest are sums of absolute
    values.

    Returns:
        The largest absolute error by name.
    """
    eps = torch.finfo(torch.float32).eps
    q, k, v = (doubles[name].detach() for name in "qkv")
    scale = q.shape[-1] ** -0.5
    weight = doubles["weight"].detach().requires_grad_() if "weight" in doubles else None
    bias = bias_of(weight)
    dense = None if bias is None else bias.dense().double()
    scores = scale * (q @ k.mT) if dense is None else scale * (q @ k.mT) + dense.detach()
    log = scores.logsumexp(dim=-1, keepdim=True)
    ruled_out = scores == -torch.inf
    share_of_key = torch.exp(scores - log).masked_fill(ruled_out, 0.0)
    off = eps * share_of_key * (1 + scores.abs() + log.abs()).masked_fill(ruled_out, 0.0)
    errors = {"out": off @ v.abs()}
    if upstream is not None:
        down = upstream.double()
        slope = down @ v.mT
        share = (share_of_key * slope).sum(dim=-1, keepdim=True)
        out_terms = (down.abs() * (share_of_key @ v).abs()).sum(dim=-1, keepdim=True)
        dots = eps * (down.abs() @ v.abs().mT) + (eps + rounding) * out_terms
        slope_off = off * (slope - share).abs() + share_of_key * dots
        errors |= {
            "dq": scale * slope_off @ k.abs(),
            "dk": scale * slope_off.mT @ q.abs(),
            "dv": off.mT @ down.abs(),
        }
        if weight is not None and dense is not None:
            (errors["dweight"],) = torch.autograd.grad(dense, weight, slope_off.sum_to_size(dense.shape))
    return {name: value.abs().max().item() for name, value in errors.items()}
