"""Laws that attention with a bias obeys whatever computes it: the second half of the conformance suite.

Each takes an implementation and a case, computes one thing by two roads, and holds the implementation's
road against the fp64 value of the other, within the error budget of ``operators.testing.cases``.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from operators.api import attention
from operators.bias import DenseBias, GlobalBias, LocalMask, WindowBias
from operators.forms import Bias
from operators.grid import CAMERA, LIDAR, TokenGrid
from operators.testing.cases import Case, poisoned_memory
from operators.testing.oracle import make_oracle


def zero_weight_is_no_bias(impl: str, case: Case) -> None:
    """A bias whose weights are 0 changes nothing."""
    weight = torch.zeros_like(case.leaves["weight"])
    _compare(case, _run(impl, case, case.bias(weight)), lambda weight: None)


def equal_weights_are_no_bias(impl: str, case: Case) -> None:
    """A constant on the whole row of a query changes nothing."""
    shape = case.leaves["weight"].shape
    constant = torch.linspace(-3, 3, shape[2], device=case.rects.device)  # another one for every query
    weight = constant[:, None].expand(shape).contiguous()
    if case.kind == "window":
        case = replace(case, rects=_whole(case))
    _compare(case, _run(impl, case, case.bias(weight)), lambda weight: None)


def key_order_does_not_matter(impl: str, case: Case) -> None:
    """Keys that trade places with all that belongs to them give the same result."""
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
        turned = replace(case, rects=case.rects[:, :, segments], centers=case.centers[:, :, segments])
        bias = turned.bias(weight)
        if bias is not None:
            object.__setattr__(bias, "grid", TokenGrid.of(*shapes))
    out = attention(leaves["q"], leaves["k"], leaves["v"], bias, impl=impl)
    _compare(case, out, case.bias)


def key_splits_unite(impl: str, case: Case) -> None:
    """Two halves of the keys, merged by their softmax denominators, give the whole."""
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
    """Windows that cover every segment, with one weight per modality, are the global bias."""
    assert case.kind == "window"
    grid, weight = case.sizes.grid, case.leaves["weight"]
    pair = weight[..., [0, -1]]  # BEV comes first, a camera last
    out = _run(impl, case, WindowBias(grid, _whole(case), grid.per_segment(pair)))
    _compare(case, out, lambda leaf: None if leaf is None else GlobalBias(grid, leaf[..., [0, -1]]))


def local_mask_is_a_gather(impl: str, case: Case) -> None:
    """Attention under the local mask is plain attention over the keys of the windows alone."""
    assert case.kind == "local"
    out = _run(impl, case, LocalMask(case.sizes.grid, case.rects))
    held = LocalMask(case.sizes.grid, case.rects).dense()[:, 0] == 0  # (B, Q, K)
    oracle = make_oracle(case.leaves, case.bias)
    gathered = torch.zeros_like(oracle.exact["out"])
    for b, i in held.any(-1).nonzero().tolist():
        keys = held[b, i].nonzero().flatten()
        q, k, v = (case.leaves[name][b : b + 1].double() for name in "qkv")
        one = attention(q[:, :, i : i + 1], k[:, :, keys], v[:, :, keys], impl="reference")
        gathered[b, :, i] = one[0, :, 0]
    replace(oracle, exact={"out": gathered}).check({"out": out})


def queries_without_keys_give_zero(impl: str, case: Case) -> None:
    """Under a mask, a query with no key has output exactly 0 and asks nothing of q, k and v."""
    assert case.kind == "local"
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in case.leaves.items()}
    dead = (case.rects[..., 1] < case.rects[..., 0]).all(-1)  # (B, Q)
    assert dead.any(), "the case has no query without keys"
    with poisoned_memory(case.rects.device):
        out = attention(leaves["q"], leaves["k"], leaves["v"], case.bias(None), impl=impl)
        torch.autograd.backward(out.masked_fill(~dead[:, None, :, None], 0.0).sum())
    assert (out.detach().movedim(1, 2)[dead] == 0).all(), "a query without keys gave something"
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert (leaf.grad == 0).all(), f"a query without keys gave a gradient to {name}"


def shared_weights_are_repeated_weights(impl: str, case: Case) -> None:
    """One weight for all heads is the same as that weight repeated for every head."""
    assert not case.sizes.bias_per_head
    repeated = case.leaves["weight"].repeat(1, case.sizes.heads, 1, 1)
    _compare(case, _run(impl, case, case.bias(repeated)), case.bias)


def _run(impl: str, case: Case, bias: Bias | None) -> Tensor:
    """Compute the output alone, on poisoned memory."""
    with poisoned_memory(case.rects.device), torch.no_grad():
        return attention(case.leaves["q"], case.leaves["k"], case.leaves["v"], bias, impl=impl)


def _compare(case: Case, out: Tensor, bias: Callable[[Tensor | None], Bias | None]) -> None:
    """Hold an output against the reference with the bias that ``bias`` builds from the case's weight."""
    make_oracle(case.leaves, bias).check({"out": out})


def _whole(case: Case) -> Tensor:
    """Return rects that cover every segment."""
    batch, queries = case.rects.shape[:2]
    return case.sizes.grid.whole_rects(batch, queries, case.rects.device)


def _reversed_segments(grid: TokenGrid) -> tuple[Tensor, list[int]]:
    """Return the keys with the segments in reverse order, and that order of segments."""
    segments = list(range(grid.num_segments))[::-1]
    keys = [torch.arange(s.num_keys) + s.offset for s in reversed(grid.segments)]
    return torch.cat(keys), segments


def _scores(case: Case, bias: Bias | None) -> Tensor:
    """Return the biased scores, (B, H, Q, K) in float64."""
    q, k = case.leaves["q"].double(), case.leaves["k"].double()
    scores = case.sizes.head_size**-0.5 * (q @ k.mT)
    return scores if bias is None else scores + bias.dense().double()


def _dense_part(bias: Bias | None, keys: slice, dtype: torch.dtype) -> Bias | None:
    """Cut a bias down to some of the keys: the BEV segment or the rest."""
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
    for name, dim in (("rects", 2), ("centers", 2), ("weight", -1)):
        if name in fields and not (name == "weight" and isinstance(bias, GlobalBias)):
            fields[name] = fields[name].movedim(dim, 0)[kept].movedim(0, dim)
    return type(bias)(**fields)
