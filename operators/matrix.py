"""Table: which implementation takes which bias, in which form, and otherwise why not.

``biaswise operators list`` prints it, and ``docs/operators.md`` holds a copy. The entries come from the
implementations' own objections, for the attention of a decoder in training.
"""

from dataclasses import replace

from operators import registry
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, KINDS, Request

_RANK = 32  # any rank that fits beside a head; only lowrank takes one
_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}  # the training dtype of each device
_NO_BIAS_GRADIENT, _FORWARD, _AT_A_RANK = " (no bias gradient)", " (forward)", " at a rank"
_MARKS = {
    _NO_BIAS_GRADIENT: ("*", "no gradient reaches the bias"),
    _FORWARD: ("†", "forward pass only"),
    _AT_A_RANK: ("‡", "an approximation, at a rank that the caller names"),
}
"""Restriction of a cell -> its mark in the table, and what the mark means."""


def cell(impl: str, kind: str, device: str) -> tuple[str, list[str]]:
    """Return how an implementation serves a bias kind, and its objections to the rest.

    Args:
        impl: one of ``operators.spec.IMPLEMENTATIONS``.
        kind: one of ``operators.spec.BIAS_KINDS``.
        device: ``cpu`` or ``cuda``.

    Returns:
        The form's name. It is followed by ``(no bias gradient)`` where no gradient reaches the bias, and by
        ``(forward)`` where there are no gradients at all. ``FACTORS at a rank`` means an approximation, and
        ``-`` that the kind is not served. Then the objections to what is missing.
    """
    trained = bool(KINDS[kind].weights)
    request = Request(kind=kind, device=device, dtype=_DTYPES[device], qkv_grad=True, bias_grad=trained)
    objections = registry.objections(impl, request)
    form = request.form_among(registry.entry(impl).forms)
    if not objections and form is not None:
        return form.name, []
    without_bias_grad = replace(request, bias_grad=False)
    for restriction, less in (
        (_NO_BIAS_GRADIENT, without_bias_grad),
        (_FORWARD, replace(without_bias_grad, qkv_grad=False)),
    ):
        if form is not None and not registry.objections(impl, less):
            return f"{form.name}{restriction}", objections
    if not registry.objections(impl, replace(request, rank=_RANK)):
        return f"FACTORS{_AT_A_RANK}", objections
    return "-", objections


def table(device: str) -> str:
    """Return the table of one device as Markdown, with the numbered reasons below it."""
    numbers: dict[str, int] = {}  # reason -> its number
    lines = [f"| implementation | {' | '.join(BIAS_KINDS)} |", "|---" * (1 + len(BIAS_KINDS)) + "|"]
    for impl in IMPLEMENTATIONS:
        cells = []
        for kind in BIAS_KINDS:
            text, objections = cell(impl, kind, device)
            references = ", ".join(str(numbers.setdefault(why, len(numbers) + 1)) for why in objections)
            cells.append(_abbreviated(text) + (f" [{references}]" if references else ""))
        lines.append(f"| `{impl}` | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for reason, number in numbers.items()]
    return "\n".join([*lines, "", *notes])


def _abbreviated(text: str) -> str:
    """Return the text of a cell with its restriction as a mark."""
    for restriction, (mark, _) in _MARKS.items():
        text = text.replace(restriction, mark)
    return text


def main(device: str | None = None) -> str:
    """Return the text that ``biaswise operators list`` prints.

    Args:
        device: ``cpu`` or ``cuda``; None: both.
    """
    request = Request(dtype="float32")
    sizes = f"{request.heads} heads of {request.head_size}, {request.queries} queries, {request.keys} keys"
    parts = ["\n".join(f"- `{mark}` {meaning}" for mark, meaning in _MARKS.values())]
    for name in [device] if device else _DTYPES:
        parts.append(f"### {name}, {_DTYPES[name]}, training ({sizes})\n\n{table(name)}")
    return "\n\n".join(parts)
