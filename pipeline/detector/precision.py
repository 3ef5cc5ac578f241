"""The precision that a detector computes in: whether it runs under bfloat16 autocast, and what follows.

Every part of the project that trains or detects asks here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pipeline.config.settings import TrialSettings
from pipeline.detector.build import load_config
from pipeline.detector.openmmlab.optimizer import is_amp
from pipeline.storage.paths import resolve_path

AUTOCAST_DTYPE = torch.bfloat16
"""What autocast computes in; its range is that of float32, so losses need no scaling."""


def runs_autocast(optim_wrapper: Mapping[str, Any], device: str, requested: bool = False) -> bool:
    """Return whether a model runs under autocast.

    Args:
        optim_wrapper: the config's; ``AmpOptimWrapper`` asks for autocast on a GPU.
        device: ``cpu`` or ``cuda``.
        requested: the settings ask for autocast themselves.
    """
    return requested or (is_amp(optim_wrapper) and device == "cuda")


def with_autocast(settings: TrialSettings) -> TrialSettings:
    """Return the settings with ``train.amp`` switched on where the config asks for it and there is a GPU."""
    config = load_config(resolve_path(settings.config), settings.overrides)
    amp = runs_autocast(config.optim_wrapper, settings.device, settings.train.amp)
    return replace(settings, train=replace(settings.train, amp=amp))


def autocast(device: str, amp: bool) -> torch.autocast:
    """Return the context that a forward pass runs in; without ``amp`` it changes nothing."""
    return torch.autocast(device, AUTOCAST_DTYPE, enabled=amp)


def attention_dtype(amp: bool) -> str:
    """Return the dtype of the attention's inputs, as a plan's objections spell it."""
    return str(AUTOCAST_DTYPE if amp else torch.float32).removeprefix("torch.")
