"""Attention with a bias: softmax(scale * q @ k.mT + bias) @ v.

The caller names the implementation. It computes exactly this, or the call fails and lists all reasons.
Shapes: B batch, H heads, Q queries, K keys, D head size.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from operators import registry
from operators.forms import Bias
from operators.grid import static_size
from operators.spec import Form, Request, Unsupported
from operators.validation import check_call, check_factors, check_numbers, check_values

objections = registry.objections


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | None = None,
    *,
    impl: str,
    scale: float | None = None,
    rank: int | None = None,
    validate: bool = False,
) -> Tensor:
    """Compute attention with a bias added to the scores.

    Under autocast q, k and v are cast as PyTorch's own attention casts them.

    Args:
        q: (B, H, Q, D) float16, bfloat16, float32 or float64. It sets dtype and device of the result.
        k: (B, H, K, D), dtype and device of ``q``; (B, 1, K, D) for all heads together, where the
            implementation takes that (``registry.Entry.shared_keys``).
        v: as ``k``.
        bias: what is added to the scores, in logits; None: nothing. Its weights may have any float dtype.
        impl: one of ``operators.spec.IMPLEMENTATIONS``, or ``auto``: the fastest measured one without an
            objection (``operators.auto`` logs which).
        scale: factor on q @ k.mT; None: D ** -0.5.
        rank: rank at which ``lowrank`` cuts the bias off; other implementations take none.
            ``bias.factors(rank)`` returns the error of the cut.
        validate: also check the values: refuse NaN, infinity, biases that the dtype of ``q`` cannot hold, and
            windows beyond their segment. The host then waits for the device.

    Returns:
        (B, H, Q, D). A query with no key to attend to has output 0 and gradient 0.

    Raises:
        Unsupported: the implementation cannot serve this call; the message lists all objections.
        ValueError: shapes or devices do not fit together, a number is out of its range, or the implementation
            is unknown.
        TypeError: the dtypes do not fit together, the bias is no ``Bias``, or scale or rank is no plain
            number.
    """
    q, k, v = _prepared(q, k, v)
    check_call(q, k, v, bias)
    if bias is not None and bias.kind == "none":
        bias = None
    check_numbers(scale, rank)
    scale = static_size(q.shape[-1]) ** -0.5 if scale is None else float(scale)
    impl, form = _resolve(impl, _fields(q, k, v, bias, rank))
    if validate:
        check_values(q, k, v, bias)
        check_factors(render(bias, Form[form], rank, q.dtype), scale, q.dtype)
    if not torch.is_autocast_enabled(q.device.type):
        return registry.load(impl).forward(q, k, v, scale=scale, **render(bias, Form[form], rank, q.dtype))
    with torch.autocast(q.device.type, enabled=False):  # q, k and v are cast already
        return registry.load(impl).forward(q, k, v, scale=scale, **render(bias, Form[form], rank, q.dtype))


def describe(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, rank: int | None = None) -> Request:
    """Return the ``Request`` of a call; arguments as for ``attention``."""
    return Request(*_fields(q, k, v, bias, rank), deterministic=deterministic_only())


_Fields = tuple[str, str, str, int, int, int, int, int, int, int, bool, bool, int | None, float, bool]


def _fields(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, rank: int | None) -> _Fields:
    """Return the fields of a ``Request`` in its order, as plain values that ``torch.compile`` can trace."""
    grads = torch.is_grad_enabled()
    grid = None if bias is None else bias.key_grid
    trainable = None if bias is None else bias.trainable
    return (
        "none" if bias is None else bias.kind,
        str(q.dtype).removeprefix("torch."),
        q.device.type,
        static_size(q.shape[0]),
        static_size(q.shape[1]),
        0 if torch.compiler.is_compiling() else int(q.shape[2]),  # one graph serves all numbers of queries
        static_size(k.shape[2]),
        static_size(q.shape[3]),
        0 if grid is None else grid.num_segments,
        0 if bias is None else static_size(bias.shape[1]),
        grads and (q.requires_grad or k.requires_grad or v.requires_grad),
        grads and trainable is not None and trainable.requires_grad,
        rank,
        0.0,
        static_size(k.shape[1]) < static_size(q.shape[1]),
    )


def _resolve(impl: str, fields: _Fields) -> tuple[str, str]:
    """Return the implementation (``auto`` resolved) and the name of the form to hand over.

    Raises:
        Unsupported: lists all objections.
    """
    # A graph of torch.compile keeps the answer, and has a guard on this switch by itself.
    return _cached_resolve(impl, fields, deterministic_only())


@lru_cache(maxsize=1024)  # a model has tens of different calls; a call without the cache takes 0.1 ms longer
def _cached_resolve(impl: str, fields: _Fields, deterministic: bool) -> tuple[str, str]:
    from operators.auto import pick, usable

    request = Request(*fields, deterministic=deterministic)
    if impl == "auto":
        impl = pick(request)
    reasons = registry.objections(impl, request)
    if reasons:
        others = usable(request)
        hint = f"; {', '.join(others)} can" if others else "; no implementation here can"
        raise Unsupported(f"{impl} cannot serve {request}: {'; '.join(reasons)}{hint}")
    form = request.form_among(registry.entry(impl).forms)
    assert form is not None  # common_objections objects to a call without a common form
    return impl, form.name


def deterministic_only() -> bool:
    """Whether PyTorch refuses kernels that are not deterministic, instead of warning of them."""
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled() and not warns


# torch.compiler.assume_constant_result sets this attribute, but it also imports the whole compiler. The
# result depends on the arguments only. Computing it imports modules, which a compiled graph cannot do.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def render(bias: Bias | None, form: Form, rank: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return a bias in a form, as the keyword arguments of an implementation's ``forward``."""
    if bias is None:
        return {}
    if form is Form.DENSE:
        return {"bias": bias.dense(dtype)}
    if form is Form.FACTORS:
        factors = bias.factors(rank)
        return {"u": factors.u, "w": factors.w}
    if form is Form.RECTS:
        return {"rects_form": bias.rects_form()}
    return {"score_mod": bias.score_mod()}


def _prepared(*tensors: Tensor) -> list[Tensor]:
    """Cast to autocast's dtype if it is on, and make the last axis contiguous, as fused kernels require."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
