"""Which implementation takes which bias, in which form, and if not, why not: ``biaswise operators list``.

The table is asked of the implementations themselves, for the attention of a decoder in training and in
inference; the one in ``docs/operators.md`` is this output.
"""

from dataclasses import replace

from operators import registry
from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, Request

_RANK = 32  # any rank that fits beside a head; only lowrank takes one
_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}  # what each device trains in


def cell(impl: str, kind: str, device: str) -> tuple[str, list[str]]:
    """Say how an implementation serves a bias kind.

    Args:
        impl: one of ``operators.spec.IMPLEMENTATIONS``.
        kind: one of ``operators.spec.BIAS_KINDS``.
        device: ``cpu`` or ``cuda``.

    Returns:
        The form, with ``(forward)`` where no gradient or ``(no bias gradient)`` where none reaches the
        bias; ``FACTORS at a rank`` where only an approximation is served; or ``-``. And the objections
        to what is missing.
    """
    trained = kind not in ("none", "local")  # those two have no weights
    request = Request(kind=kind, device=device, dtype=_DTYPES[device], qkv_grad=True, bias_grad=trained)
    found = registry.objections(impl, request)
    form = request.form_among(registry.entry(impl).forms)
    if not found and form is not None:
        return form.name, []
    without_bias = replace(request, bias_grad=False)
    for note, less in (
        ("no bias gradient", without_bias),
        ("forward", replace(without_bias, qkv_grad=False)),
    ):
        if form is not None and not registry.objections(impl, less):
            return f"{form.name} ({note})", found
    if not registry.objections(impl, replace(request, rank=_RANK)):
        return "FACTORS at a rank", found
    return "-", found


def table(device: str) -> str:
    """Return the table of one device as Markdown, the reasons numbered below it."""
    reasons: dict[str, int] = {}
    lines = [f"| implementation | {' | '.join(BIAS_KINDS)} |", "|---" * (1 + len(BIAS_KINDS)) + "|"]
    for impl in IMPLEMENTATIONS:
        cells = []
        for kind in BIAS_KINDS:
            text, found = cell(impl, kind, device)
            marks = [f"[{reasons.setdefault(reason, len(reasons) + 1)}]" for reason in found]
            cells.append(" ".join([text, *marks]))
        lines.append(f"| `{impl}` | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", *notes])


def main(device: str | None = None) -> str:
    """Return the text that ``biaswise operators list`` prints.

    Args:
        device: ``cpu`` or ``cuda``; None: both.
    """
    request = Request(dtype="float32")
    parts = []
    for name in [device] if device else _DTYPES:
        sizes = (
            f"{request.heads} heads of {request.head_size}, {request.queries} queries, {request.keys} keys"
        )
        parts.append(f"### {name}, {_DTYPES[name]}, training ({sizes})\n\n{table(name)}")
    return "\n\n".join(parts)
