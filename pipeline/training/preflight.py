"""Everything about a trial that can be refused before anything is loaded or trained.

It imports no torch before ``check``: ``biaswise study power`` asks for ``check_values``, too.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.sections import refusals
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings
from pipeline.data.corruptions import CONDITIONS
from pipeline.data.source import is_remote
from pipeline.errors import TrialError
from pipeline.redaction import refuse_secrets
from pipeline.storage.paths import not_a_file, resolve_path, split_name

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")


def check(settings: TrialSettings, folder: Path, device: "torch.device", here: bool = True) -> None:
    """Refuse a trial that cannot run.

    Args:
        settings: the trial.
        folder: where its rows and checkpoints will go; made if missing.
        device: where it will run.
        here: on this machine; a cluster's head has no GPU, its workers do.

    Raises:
        TrialError: the first thing that is wrong, in one sentence.
        SecretError: a setting holds a password or a token.
    """
    refuse_secrets(settings.to_dict())
    _check_files(settings)
    check_values(settings)
    _check_device(settings, device, here)
    _check_folder(folder)


def check_values(settings: TrialSettings) -> None:
    """Refuse values that no trial can have.

    Raises:
        TrialError: the first of them, in one sentence.
    """
    _check_conditions(settings)
    _check_numbers(settings.train)
    _check_loading(settings.data)
    _check_machine(settings)


def check_config(settings: TrialSettings) -> None:
    """Refuse a config with a section that would change the training and that we do not follow.

    Raises:
        TrialError: the first such section (``pipeline.config.sections``), in one sentence.
    """
    from pipeline.detector.build import load_config  # costs seconds: ``check`` runs where nothing is built

    config = load_config(resolve_path(settings.config), settings.overrides).to_dict()
    for refusal in refusals(config):
        at = ".".join(map(str, refusal.key))
        raise TrialError(f"{settings.config}: {at}: {refusal.sentence}; {refusal.advice}")


def _check_files(settings: TrialSettings) -> None:
    for what, path in (("config", settings.config), ("init checkpoint", settings.init_checkpoint)):
        if path and (problem := not_a_file(split_name(resolve_path(path))[0])):
            raise TrialError(f"{what}: {problem}")
    roots = [root for root in (*settings.data.train, settings.data.val) if not is_remote(root)]
    for root in roots:
        if not resolve_path(root).exists():
            raise TrialError(f"dataset {resolve_path(root)}: no such folder; name another with --data PLACE")


def _check_conditions(settings: TrialSettings) -> None:
    unknown = [name for name in settings.conditions if name not in CONDITIONS]
    if unknown:
        raise TrialError(f"unknown sensor condition {unknown[0]!r}; expected {', '.join(CONDITIONS)}")
    if len(set(settings.conditions)) != len(settings.conditions):
        raise TrialError(f"a sensor condition is named twice: {', '.join(settings.conditions)}")


def _check_numbers(train: TrainSettings) -> None:
    least = {
        "steps": 0,
        "batch_size": 1,
        "warmup_steps": 0,
        "checkpoint_every": 1,
        "log_every": 1,
        "checkpoints_kept": 1,
    }
    for name, minimum in least.items():
        value = getattr(train, name)
        if value is not None and value < minimum:
            raise TrialError(f"settings.train.{name} is {value}; expected {minimum} or more")
    shares = train.camera_dropout_prob, train.lidar_dropout_prob
    if min(shares) < 0 or not sum(shares) <= 1:
        raise TrialError(
            f"settings.train.camera_dropout_prob and lidar_dropout_prob are {shares[0]} and {shares[1]}; "
            "expected shares of the samples, together 1 at most"
        )
    if not train.lr_scale > 0:
        raise TrialError(f"settings.train.lr_scale is {train.lr_scale}; expected a positive factor")


def _check_loading(data: DataSettings) -> None:
    if not data.train:
        raise TrialError("settings.data.train is empty; name a dataset (its kernels are profiled on it too)")
    if is_remote(data.val):
        raise TrialError(f"dataset {data.val}: the official metric needs nuScenes tables on disk")
    for name in ("num_loader_workers", "shuffle_buffer", "max_broken_frames"):
        if getattr(data, name) < 0:
            raise TrialError(f"settings.data.{name} is {getattr(data, name)}; expected 0 or more")
    if data.missing_cameras not in ("refuse", "black"):
        raise TrialError(
            f"settings.data.missing_cameras is {data.missing_cameras!r}; expected refuse or black"
        )


def _check_machine(settings: TrialSettings) -> None:
    if settings.device not in DEVICES:
        raise TrialError(f"settings.device is {settings.device!r}; expected {' or '.join(DEVICES)}")
    for name in ("num_workers", "torch_threads"):
        if getattr(settings, name) < 1:
            raise TrialError(f"settings.{name} is {getattr(settings, name)}; expected 1 or more")
    if settings.train.amp and settings.device != "cuda":
        raise TrialError("settings.train.amp (bfloat16 autocast) is for cuda; set amp=False on a CPU")


def _check_device(settings: TrialSettings, device: "torch.device", here: bool) -> None:
    import torch

    if device.type != settings.device:
        raise TrialError(f"the settings ask for {settings.device}, the session gives {device}")
    if here and device.type == "cuda" and not torch.cuda.is_available():
        raise TrialError("the settings ask for cuda, and torch sees no CUDA device; use device='cpu'")


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable"):  # each rank tries with its own file
            pass
    except OSError as error:
        raise TrialError(
            f"{folder}: cannot write here ({os.strerror(error.errno or 0)}); choose another output folder"
        ) from error
