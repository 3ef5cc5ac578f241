"""Names that every other file of the operators shares: bias kinds, forms, implementations.

Plain values; imports nothing but the standard library.
"""

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
