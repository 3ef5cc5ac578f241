"""Names that all files of the operators share: bias kinds, forms, implementations, requests.

This module imports only the standard library, so that it loads at once.
"""

from dataclasses import dataclass
from enum import Enum, auto

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
    "gathered",
)
"""Ways to compute attention; ``operators.registry`` maps each to its module."""


class Form(Enum):
    """How a bias can be handed to an implementation."""

    NONE = auto()
    DENSE = auto()  # (B, H or 1, Q, K)
    FACTORS = auto()  # u (B, H, Q, R) and w (B, H, K, R), bias = u @ w.mT
    RECTS = auto()  # per query and segment: first and last row and column, and a weight
    SCORE_MOD = auto()  # a function of (score, b, h, q, k), for FlexAttention


@dataclass(frozen=True)
class Kind:
    """What is known of a bias kind.

    Attributes:
        forms: the forms in which it is exact. Implementations that take none of them object.
        weights: what has a weight of its own: ``modality``, ``segment``, ``score``, or nothing.
        windowed: whether it is confined to windows.
    """

    forms: frozenset[Form]
    weights: str = ""
    windowed: bool = False


_CELLS = frozenset({Form.DENSE, Form.RECTS, Form.SCORE_MOD})

KINDS: dict[str, Kind] = {
    "none": Kind(frozenset({Form.NONE})),
    "global": Kind(_CELLS | {Form.FACTORS}, "modality"),
    "window": Kind(_CELLS, "segment", windowed=True),
    "gaussian": Kind(_CELLS, "segment", windowed=True),
    "dense": Kind(frozenset({Form.DENSE, Form.SCORE_MOD}), "score"),
    "local": Kind(_CELLS, windowed=True),
}
"""Every bias kind (docs/extend.md adds one). ``local`` is a mask: -inf is added outside its windows."""

BIAS_KINDS = tuple(KINDS)

WEIGHTED_KINDS = tuple(name for name, kind in KINDS.items() if kind.weights in ("modality", "segment"))
"""Kinds with weights on a grid, which a bias generator makes."""

WINDOWED_KINDS = tuple(name for name in WEIGHTED_KINDS if KINDS[name].windowed)
"""Those of them whose window a site may size for itself."""

TRUNCATABLE_KINDS = frozenset(n for n, k in KINDS.items() if k.weights and Form.FACTORS not in k.forms)
"""Kinds without exact factors. If the caller names a rank, they are approximated by factors of that rank."""

GLOBAL_RANK = 2
"""Rank of the global bias: one factor for the LiDAR keys, one for the camera keys."""


class Unsupported(ValueError):
    """An implementation cannot compute the call as asked."""


@dataclass(frozen=True)
class Request:
    """Everything about one call of attention that an implementation may object to.

    Attributes:
        kind: one of ``BIAS_KINDS``.
        dtype: of q, k and v: ``float16``, ``bfloat16``, ``float32`` or ``float64``.
        device: ``cpu`` or ``cuda``.
        batch: B. heads: H. keys: K. head_size: D, of q, k and v alike.
        queries: Q; 0: any number, because a graph of ``torch.compile`` serves all.
        segments: number of segments of the key grid; 0 without a grid.
        bias_heads: 1 (shared by the heads) or H; 0 without a bias.
        qkv_grad: whether gradients to q, k or v are needed.
        bias_grad: whether gradients to the bias are needed.
        rank: rank at which the bias is cut off; None: the bias is exact.
        dropout: probability of dropping an attention weight; no implementation supports it.
        shared_keys: whether all heads have the same keys and the same values.
        deterministic: whether PyTorch refuses what is not (``torch.use_deterministic_algorithms``).

    Raises:
        ValueError: an unknown kind.
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
    shared_keys: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        if self.kind not in BIAS_KINDS:
            raise ValueError(f"unknown bias kind {self.kind!r}; expected one of {', '.join(BIAS_KINDS)}")

    @property
    def forms(self) -> frozenset[Form]:
        """The forms in which this bias can be handed over; a named rank adds approximate factors."""
        exact = KINDS[self.kind].forms
        if self.rank is not None and self.kind in TRUNCATABLE_KINDS:
            return exact | {Form.FACTORS}
        return exact

    @property
    def mask(self) -> bool:
        """Whether this kind is a mask. (A dense bias may hold -inf too, but its kind does not show that.)"""
        return self.kind == "local"

    def form_among(self, served: tuple[Form, ...]) -> Form | None:
        """Return the first form of ``served`` that this request offers, or None."""
        return next((form for form in served if form in self.forms), None)

    def __str__(self) -> str:
        """Describe the call in one phrase."""
        queries = f"Q{self.queries}" if self.queries else "any Q"
        sizes = f"B{self.batch} H{self.heads} {queries} K{self.keys} D{self.head_size}"
        grads = {
            (False, False): "forward only",
            (True, False): "gradients to q, k, v",
            (False, True): "gradients to the bias",
            (True, True): "gradients to q, k, v and the bias",
        }[self.qkv_grad, self.bias_grad]
        rank = "" if self.rank is None else f", rank {self.rank}"
        dropout = "" if not self.dropout else f", dropout {self.dropout}"
        shared = ", keys shared by the heads" if self.shared_keys else ""
        more = f"{rank}{dropout}{shared}{', deterministic' if self.deterministic else ''}"
        return f"{self.kind} bias on {self.device}, {self.dtype}, {sizes}, {grads}{more}"


def common_objections(request: Request, served: tuple[Form, ...]) -> list[str]:
    """List the objections that do not depend on the implementation's code, only on its forms.

    Args:
        request: the call.
        served: the forms that the implementation takes, the preferred one first.
    """
    objections = []
    if request.dropout:
        objections.append(f"has no attention dropout (CMT trains without), got dropout={request.dropout}")
    if request.form_among(served) is None:
        objections.append(_missing_form(request, served))
    if request.rank is not None and Form.FACTORS not in served:
        objections.append(f"computes the exact bias, got rank={request.rank}; a rank goes with lowrank")
    return objections


def _missing_form(request: Request, served: tuple[Form, ...]) -> str:
    """Return the objection that the implementation and the bias have no form in common."""
    expected = " or ".join(form.name for form in served)
    got = ", ".join(sorted(form.name for form in request.forms))
    hint = ""
    if Form.FACTORS in served and request.kind in TRUNCATABLE_KINDS:
        hint = "; name a rank to approximate it"
    return f"takes {expected}, the {request.kind} bias has {got}{hint}"
