"""The precision that a trial computes in: bfloat16 autocast, and the dtype of its attention."""

from dataclasses import replace

from pipeline.config.settings import TrialSettings
from pipeline.detector.build import load_config
from pipeline.detector.openmmlab.optimizer import is_amp
from pipeline.storage.paths import resolve_path


def with_autocast(settings: TrialSettings) -> TrialSettings:
    """Switch bfloat16 autocast on where the config does (``AmpOptimWrapper``) and there is a GPU."""
    config = load_config(resolve_path(settings.config), settings.overrides)
    amp = settings.train.amp or (is_amp(config.optim_wrapper) and settings.device == "cuda")
    return replace(settings, train=replace(settings.train, amp=amp))


def attention_dtype(settings: TrialSettings) -> str:
    """Return the dtype that attention sees under the trial's autocast."""
    return "bfloat16" if settings.train.amp else "float32"
