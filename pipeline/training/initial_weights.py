"""The weights that a trial starts from: those of its settings, else of its config's ``load_from``."""

from typing import Any

from pipeline.config.settings import TrialSettings
from pipeline.detector.build import load_config
from pipeline.detector.weights import LoadReport, load_weights
from pipeline.storage.paths import resolve_path

OF_SETTINGS = ("aqr",)
"""Parts that the checkpoint of the settings may lack: CMT's own have no AQR."""

OF_CONFIG = (*OF_SETTINGS, "all but images")
"""Parts that ``load_from`` may lack: CMT's configs name an image backbone that was trained elsewhere."""


def initial_weights(settings: TrialSettings) -> str:
    """Return the checkpoint that a trial starts from; empty: it starts from its seed."""
    if settings.init_checkpoint:
        return settings.init_checkpoint
    return str(load_config(resolve_path(settings.config), settings.overrides).get("load_from") or "")


def load_initial_weights(model: Any, settings: TrialSettings) -> LoadReport | None:
    """Load the weights that a trial starts from; None if it starts from its seed.

    Raises:
        WeightsError: see ``load_weights``.
    """
    name = initial_weights(settings)
    if not name:
        return None
    return load_weights(model, resolve_path(name), OF_SETTINGS if settings.init_checkpoint else OF_CONFIG)
