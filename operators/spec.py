"""Names that every other file of the operators shares: bias kinds, forms, implementations, requests.

Plain values; imports nothing but the standard library, so that asking what runs where costs nothing.
"""

from dataclasses import dataclass
from enum import Enum, auto

BIAS_KINDS = ("none", "global", "window", "gaussian", "dense", "local")
"""What is added to the scores; ``local`` is a mask (minus infinity outside)."""

IMPLEMENTATIONS = (
    "reference",
    "sdpa_math",
    "sdpa_efficient",
    "sdpa_flash",
    "sdpa_cudnn",
    "flash",
    "lowrank",
    "flex",
    "rects",
)
"""Ways to compute attention; ``operators.registry`` says which file holds each."""


class Form(Enum):
    """How a bias can be handed to an implementation."""

    NONE = auto()
    DENSE = auto()  # (B, H or 1, Q, K)
    FACTORS = auto()  # u (B, H, Q, R) and w (B, H, K, R), bias = u @ w.mT
    RECTS = auto()  # first and last row and column, and a weight, per query and segment
    SCORE_MOD = auto()  # a function of (score, b, h, q, k), for FlexAttention


FORMS_OF_KIND: dict[str, frozenset[Form]] = {
    "none": frozenset({Form.NONE}),
    "global": frozenset({Form.DENSE, Form.FACTORS, Form.RECTS, Form.SCORE_MOD}),
    "window": frozenset({Form.DENSE, Form.RECTS, Form.SCORE_MOD}),
    "gaussian": frozenset({Form.DENSE, Form.RECTS, Form.SCORE_MOD}),
    "dense": frozenset({Form.DENSE, Form.SCORE_MOD}),
    "local": frozenset({Form.DENSE, Form.RECTS, Form.SCORE_MOD}),
}
"""The exact forms of every bias kind."""

TRUNCATABLE_KINDS = frozenset({"window", "gaussian", "dense"})
"""Kinds that have no exact factors and get approximate ones when the caller names a rank."""

GLOBAL_RANK = 2
"""Rank of the global bias: one factor for the LiDAR keys, one for the camera keys."""


class Unsupported(ValueError):
    """An implementation was asked for something it cannot compute as asked."""


@dataclass(frozen=True)
class Request:
    """What one call of attention asks for: everything an implementation may object to.

    Attributes:
        kind: one of ``BIAS_KINDS``.
        dtype: of q, k and v: ``float16``, ``bfloat16``, ``float32`` or ``float64``.
        device: ``cpu`` or ``cuda``.
        batch: B. heads: H. queries: Q. keys: K. head_size: D, of q, k and v alike.
        segments: number of segments of the key grid; 0 without a grid.
        bias_heads: 1 (shared by the heads) or H; 0 without a bias.
        qkv_grad: whether gradients to q, k or v are needed.
        bias_grad: whether gradients to the bias are needed.
        rank: rank at which the bias is cut off; None is exact.
        dropout: probability of dropping an attention weight; no implementation has it.
    """

    kind: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    batch: int = 1
    heads: int = 8
    queries: int = 900
    keys: int = 22_384
    head_size: int = 32
    segments: int = 0
    bias_heads: int = 0
    qkv_grad: bool = False
    bias_grad: bool = False
    rank: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a kind nobody knows."""
        if self.kind not in BIAS_KINDS:
            raise ValueError(f"unknown bias kind {self.kind!r}; expected one of {', '.join(BIAS_KINDS)}")

    @property
    def forms(self) -> frozenset[Form]:
        """The forms this bias can be handed over in; a named rank adds approximate factors."""
        exact = FORMS_OF_KIND[self.kind]
        if self.rank is not None and self.kind in TRUNCATABLE_KINDS:
            return exact | {Form.FACTORS}
        return exact

    @property
    def mask(self) -> bool:
        """Whether the bias rules keys out for certain (a dense bias may, and cannot tell)."""
        return self.kind == "local"

    def form_among(self, served: tuple[Form, ...]) -> Form | None:
        """Return the first form of ``served`` that this request offers, or None."""
        return next((form for form in served if form in self.forms), None)

    def __str__(self) -> str:
        """Say in one phrase what is asked."""
        sizes = f"B{self.batch} H{self.heads} Q{self.queries} K{self.keys} D{self.head_size}"
        grads = {
            (False, False): "forward only",
            (True, False): "gradients to q, k, v",
            (False, True): "gradients to the bias",
            (True, True): "gradients to q, k, v and the bias",
        }[self.qkv_grad, self.bias_grad]
        rank = "" if self.rank is None else f", rank {self.rank}"
        dropout = "" if not self.dropout else f", dropout {self.dropout}"
        return f"{self.kind} bias on {self.device}, {self.dtype}, {sizes}, {grads}{rank}{dropout}"


def common_objections(request: Request, served: tuple[Form, ...]) -> list[str]:
    """List what no implementation does, and the lack of a form that this one serves.

    Args:
        request: the call.
        served: the forms an implementation takes, its favourite first.
    """
    found = []
    if request.dropout:
        found.append(f"has no attention dropout (CMT trains without), got dropout={request.dropout}")
    if request.form_among(served) is None:
        found.append(_missing_form(request, served))
    if request.rank is not None and Form.FACTORS not in served:
        found.append(f"computes the exact bias, got rank={request.rank}; a rank goes with lowrank")
    return found


def _missing_form(request: Request, served: tuple[Form, ...]) -> str:
    """Say which forms are wanted and which the bias has."""
    wants = " or ".join(form.name for form in served)
    has = ", ".join(sorted(form.name for form in request.forms))
    hint = ""
    if Form.FACTORS in served and request.kind in TRUNCATABLE_KINDS:
        hint = "; name a rank to cut it off (an approximation)"
    return f"takes {wants}, the {request.kind} bias has {has}{hint}"
