"""Laws that every implementation of attention must obey: the second half of the conformance suite.

Each law states that two computations have the same result. It runs one of them by the implementation, and
compares it with the float64 value of the other, within the error budget of ``operators.testing.oracle``.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from operators.api import attention
from operators.bias import DenseBias, GlobalBias
from operators.forms import Bias
from operators.grid import CAMERA, LIDAR, TokenGrid
from operators.testing.cases import Case, check_case, gradients_served, poisoned_memory
from operators.testing.oracle import make_oracle
from operators.window_bias import LocalMask, WindowBias


def zero_weight_is_no_bias(impl: str, case: Case) -> None:
    """A bias whose weights are all 0 gives the result without a bias."""
    weight = torch.zeros_like(case.leaves["weight"])
    _compare(case, _run(impl, case, case.bias(weight)), lambda weight: None)


def equal_weights_are_no_bias(impl: str, case: Case) -> None:
    """A bias that is constant over all keys of a query gives the result without a bias."""
    shape = case.leaves["weight"].shape
    constant = torch.linspace(-3, 3, shape[2], device=case.windows.device)  # one per query
    weight = constant[:, None].expand(shape).contiguous()
    if case.kind == "window":
        case = replace(case, windows=_whole(case))
    _compare(case, _run(impl, case, case.bias(weight)), lambda weight: None)


def key_order_does_not_matter(impl: str, case: Case) -> None:
    """Keys in another order, with their values and biases, give the same result."""
    order, segments = _reversed_segments(case.sizes.grid)
    leaves = {name: leaf[:, :, order] if name in ("k", "v") else leaf for name, leaf in case.leaves.items()}
    shapes = [(s.rows, s.cols, s.modality) for s in reversed(case.sizes.grid.segments)]
    weight = leaves.get("weight")
    bias: Bias | None
    if case.kind == "dense":
        assert weight is not None
        bias = DenseBias(weight[..., order])
    else:
        if weight is not None and case.kind != "global":
            weight = weight[..., segments]
        turned = replace(case, windows=case.windows[:, :, segments], centers=case.centers[:, :, segments])
        bias = turned.bias(weight)
        if bias is not None:
            object.__setattr__(bias, "grid", TokenGrid.of(*shapes))
    out = attention(leaves["q"], leaves["k"], leaves["v"], bias, impl=impl)
    _compare(case, out, case.bias)


def key_splits_unite(impl: str, case: Case) -> None:
    """The results of two parts of the keys, merged by their softmax denominators, give that of all keys."""
    bias = case.bias(case.leaves.get("weight"))
    dense = _scores(case, bias)
    half = case.sizes.grid.segments[0].num_keys  # the BEV map on one side, the cameras on the other
    parts, logs = [], []
    for keys in (slice(0, half), slice(half, None)):
        part = _dense_part(bias, keys, case.leaves["q"].dtype)
        q, k, v = case.leaves["q"], case.leaves["k"][:, :, keys], case.leaves["v"][:, :, keys]
        parts.append(attention(q, k.contiguous(), v.contiguous(), part, impl=impl).double())
        logs.append(dense[..., keys].logsumexp(-1, keepdim=True))
    total = torch.logaddexp(*logs)
    shares = [torch.where(total.isinf(), 0.0, (log - total).exp()) for log in logs]
    merged = sum(share * part for share, part in zip(shares, parts, strict=True))
    assert isinstance(merged, Tensor)
    _compare(case, merged.to(case.leaves["q"].dtype), case.bias)


def whole_windows_are_global(impl: str, case: Case) -> None:
    """Windows that cover whole segments, with one weight per modality, give the result of the global bias."""
    assert case.kind == "window"
    grid, weight = case.sizes.grid, case.leaves["weight"]
    pair = weight[..., [0, -1]]  # BEV comes first, a camera last
    out = _run(impl, case, WindowBias(grid, _whole(case), grid.per_segment(pair)))
    _compare(case, out, lambda leaf: None if leaf is None else GlobalBias(grid, leaf[..., [0, -1]]))


def local_mask_is_a_gather(impl: str, case: Case) -> None:
    """Attention with the local mask is attention without a bias over the keys in the windows."""
    assert case.kind == "local"
    out = _run(impl, case, LocalMask(case.sizes.grid, case.windows))
    held = LocalMask(case.sizes.grid, case.windows).dense()[:, 0] == 0  # (B, Q, K)
    oracle = make_oracle(case.leaves, case.bias)
    gathered = torch.zeros_like(oracle.exact["out"])
    for b, i in held.any(-1).nonzero().tolist():
        keys = held[b, i].nonzero().flatten()
        q, k, v = (case.leaves[name][b : b + 1].double() for name in "qkv")
        one = attention(q[:, :, i : i + 1], k[:, :, keys], v[:, :, keys], impl="reference")
        gathered[b, :, i] = one[0, :, 0]
    replace(oracle, exact={"out": gathered}).check({"out": out})


def queries_without_keys_give_zero(impl: str, case: Case) -> None:
    """Under a mask, a query with no key has output exactly 0 and gives q, k and v gradients of exactly 0."""
    assert case.kind == "local"
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in case.leaves.items()}
    dead = (case.windows[..., 1] < case.windows[..., 0]).all(-1)  # (B, Q)
    assert dead.any(), "the case has no query without keys"
    with poisoned_memory(case.windows.device):
        out = attention(leaves["q"], leaves["k"], leaves["v"], case.bias(None), impl=impl)
        torch.autograd.backward(out.masked_fill(~dead[:, None, :, None], 0.0).sum())
    assert (out.detach().movedim(1, 2)[dead] == 0).all(), "a query without keys gave something"
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert (leaf.grad == 0).all(), f"a query without keys gave a gradient to {name}"


def shared_weights_are_repeated_weights(impl: str, case: Case) -> None:
    """One weight for all heads gives the same result as that weight repeated for every head."""
    assert not case.sizes.bias_per_head
    repeated = case.leaves["weight"].repeat(1, case.sizes.heads, 1, 1)
    _compare(case, _run(impl, case, case.bias(repeated)), case.bias)


def largest_score_can_be_ruled_out(impl: str, case: Case) -> None:
    """A key far above all others that its bias or mask rules out hides no other key: output and gradients.

    The first key of the grid scores 300 logits above the rest. A weight of -600 logits, or the mask, rules it
    out. Softmax shifts its scores by a number. A shift that such a key gave would make every other
    exponential 0 in single precision.
    """
    leaves = {name: leaf.clone() for name, leaf in case.leaves.items()}
    leaves["q"][..., 0] = 8.0
    leaves["k"][..., 0] = 0.0
    leaves["k"][:, :, 0, 0] = 300.0 / 8.0 * case.sizes.head_size**0.5
    windows, first = case.windows.clone(), case.sizes.grid.segments[0]
    below = case.kind == "local"  # the mask keeps all rows below that of the first key
    cells = [1, first.rows - 1, 0, first.cols - 1] if below else [0, 0, 0, 0]
    windows[:, :, 0] = torch.tensor(cells, dtype=windows.dtype, device=windows.device)
    if "weight" in leaves:
        leaves["weight"][..., 0] = -600.0
    grads = gradients_served(impl, case)
    assert grads is not None, f"{impl} objects to the case"
    check_case(replace(case, leaves=leaves, windows=windows), impl, grads)


def _run(impl: str, case: Case, bias: Bias | None) -> Tensor:
    """Compute the output, without gradients, on memory filled with NaN."""
    with poisoned_memory(case.windows.device), torch.no_grad():
        return attention(case.leaves["q"], case.leaves["k"], case.leaves["v"], bias, impl=impl)


def _compare(case: Case, out: Tensor, bias: Callable[[Tensor | None], Bias | None]) -> None:
    """Compare an output with the reference, with the bias that ``bias`` builds from the case's weight."""
    make_oracle(case.leaves, bias).check({"out": out})


def _whole(case: Case) -> Tensor:
    """Return windows that cover whole segments."""
    batch, queries = case.windows.shape[:2]
    return case.sizes.grid.whole_rects(batch, queries, case.windows.device)


def _reversed_segments(grid: TokenGrid) -> tuple[Tensor, list[int]]:
    """Return the order of keys that reverses the segments, and the reversed order of segments."""
    segments = list(range(grid.num_segments))[::-1]
    keys = [torch.arange(s.num_keys) + s.offset for s in reversed(grid.segments)]
    return torch.cat(keys), segments


def _scores(case: Case, bias: Bias | None) -> Tensor:
    """Return the biased scores, (B, H, Q, K) in float64."""
    q, k = case.leaves["q"].double(), case.leaves["k"].double()
    scores = case.sizes.head_size**-0.5 * (q @ k.mT)
    return scores if bias is None else scores + bias.dense().double()


def _dense_part(bias: Bias | None, keys: slice, dtype: torch.dtype) -> Bias | None:
    """Return the part of a bias over some of the keys: the BEV segment, or the cameras."""
    if bias is None:
        return None
    if isinstance(bias, DenseBias):
        return DenseBias(bias.values[..., keys].contiguous())
    first = keys.start == 0
    grid = bias.key_grid
    assert grid is not None
    kept = slice(0, 1) if first else slice(1, None)
    shapes = [(s.rows, s.cols, LIDAR if s.modality == LIDAR else CAMERA) for s in grid.segments[kept]]
    fields = dict(vars(bias)) | {"grid": TokenGrid.of(*shapes)}
    for name, dim in (("windows", 2), ("centers", 2), ("weight", -1)):
        if name in fields and not (name == "weight" and isinstance(bias, GlobalBias)):
            fields[name] = fields[name].movedim(dim, 0)[kept].movedim(0, dim)
    return type(bias)(**fields)
