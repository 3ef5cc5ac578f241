"""Resample: the official metric on scenes drawn with replacement, to see how much the scenes decide.

mAP and NDS are no averages over scenes: precision and recall are of all detections together. But the
devkit matches detections to objects frame by frame, whatever the other frames hold. So the matches are
found once, and every draw of scenes recomputes the curves from them, frames counted as often as drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 100
"""Draws of scenes: they estimate a standard deviation to 7 per cent, and cost a row each."""
SEED = 0
"""Seeds the draws: the same for every trial, so that trials differ in nothing but themselves."""
_MARK = "~"


def draw_name(draw: int) -> str:
    """Return how a row's ``scene`` spells a draw."""
    return f"{_MARK}{draw}"


def draw_of(scene: str) -> int | None:
    """Return which draw a row's ``scene`` is; None if it is a scene or empty."""
    return int(scene.removeprefix(_MARK)) if scene.startswith(_MARK) else None


def drawn_counts(num_scenes: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Return how often each scene is drawn, (draws, scenes)."""
    return np.random.default_rng(SEED).multinomial(num_scenes, [1 / num_scenes] * num_scenes, draws)
