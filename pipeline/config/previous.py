"""Recognises a config of mmcv 1.x by its sections."""

from collections.abc import Mapping
from typing import Any

REPLACED: Mapping[str, str] = {
    "optimizer": "optim_wrapper",
    "optimizer_config": "optim_wrapper",
    "lr_config": "param_scheduler",
    "momentum_config": "param_scheduler",
    "runner": "train_cfg",
    "total_epochs": "train_cfg",
    "data": "train_dataloader",
    "evaluation": "train_cfg",
    "fp16": "optim_wrapper",
    "plugin": "custom_imports",
    "plugin_dir": "custom_imports",
    "checkpoint_config": "default_hooks",
    "log_config": "default_hooks",
    "workflow": "train_cfg",
    "dist_params": "env_cfg",
    "resume_from": "resume",
}
"""Section of mmcv 1.x -> the section of mmengine that took its place."""

ADVICE = (
    "`biaswise lint OLD.py --fix --out NEW.py` writes the config of today that builds the same model and "
    "trains it with the same schedule"
)

CERTAIN = ("optimizer", "lr_config", "runner", "total_epochs", "data", "optimizer_config")
"""Any two of these, or one without the section that took its place, make a config of mmcv 1.x."""


def old_sections(config: Mapping[str, Any]) -> list[str]:
    """Return the sections of a config that are mmcv 1.x's; empty if it is a config of today."""
    found = [
        name for name in REPLACED if name in config and isinstance(config[name], Mapping | int | str | list)
    ]
    certain = [name for name in CERTAIN if name in found]
    alone = [name for name in certain if REPLACED[name] not in config]
    return found if len(certain) > 1 or alone else []


def sentence(sections: list[str]) -> str:
    """Return the sentence that says what such a config is."""
    shown = ", ".join(sections[:5]) + (", …" if len(sections) > 5 else "")
    return f"this is a config of mmcv 1.x, which mmengine replaced: nothing here reads its sections {shown}"
