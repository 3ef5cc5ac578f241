"""Bad input is refused in one sentence, before anything is loaded."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.settings import DataSettings, TrialSettings
from pipeline.errors import TrialError
from pipeline.training.preflight import check

CPU = torch.device("cpu")
Trial = Callable[..., TrialSettings]


def test_good_settings_pass_and_leave_nothing_behind(trial: Trial, tmp_path: Path) -> None:
    check(trial(), tmp_path / "new", CPU)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": "experiments/configs/none.py"}, r"config: there is no .*experiments/configs/none\.py"),
        ({"init_checkpoint": "none.safetensors"}, r"init checkpoint: there is no .*none\.safetensors"),
        ({"init_checkpoint": "/tmp"}, "init checkpoint: /tmp is a folder, expected a file"),
        ({"conditions": ("clean", "fog")}, "unknown sensor condition 'fog'; expected clean, lidar_sector"),
        ({"conditions": ("clean", "clean")}, "named twice"),
        ({"steps": -2}, "steps is -2; expected 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"lr_scale": 0.0}, "lr_scale is 0.0; expected a positive"),
        ({"lr_scale": float("nan")}, "lr_scale is nan"),
        (
            {"camera_dropout_prob": 0.6, "lidar_dropout_prob": 0.5},
            "lidar_dropout_prob are 0.6 and 0.5; expected shares",
        ),
        ({"lidar_dropout_prob": -0.1}, "expected shares"),
        ({"amp": True}, "bfloat16 autocast.*set amp=False"),
        ({"device": "cuda"}, "the settings ask for cuda, the session gives cpu"),
    ],
)
def test_what_cannot_run_is_refused(
    trial: Trial, tmp_path: Path, given: dict[str, object], message: str
) -> None:
    with pytest.raises(TrialError, match=message):
        check(trial(**given), tmp_path, CPU)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DataSettings(train=("/nowhere",), val="/tmp"),
            r"dataset /nowhere: no such folder; name another with --data PLACE",
        ),
        (DataSettings(train=("/tmp",), val="/nowhere"), "dataset /nowhere"),
        (DataSettings(train=(), val="/tmp"), r"settings\.data\.train is empty"),
        (DataSettings(train=("/tmp",), val="s3://bucket/val"), "needs nuScenes tables on disk"),
    ],
)
def test_datasets_that_cannot_serve_are_refused(
    trial: Trial, tmp_path: Path, data: DataSettings, message: str
) -> None:
    with pytest.raises(TrialError, match=message):
        check(replace(trial(), data=data), tmp_path, CPU)


def test_a_folder_that_is_a_file_is_refused(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(TrialError, match=r"taken: cannot write here .*choose another output folder"):
        check(trial(), tmp_path / "taken", CPU)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(trial: Trial, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TrialError, match="Permission denied"):
        check(trial(), tmp_path / "trial", CPU)


def test_a_gpu_is_looked_for_where_the_trial_will_run(trial: Trial, tmp_path: Path) -> None:
    """The head of a cluster has none; it refuses nothing on that account."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    cuda = torch.device("cuda")
    with pytest.raises(TrialError, match="torch sees no CUDA device"):
        check(trial(device="cuda"), tmp_path, cuda)
    check(trial(device="cuda"), tmp_path, cuda, here=False)


def test_ranks_that_check_one_folder_at_once_do_not_disturb_each_other(trial: Trial, tmp_path: Path) -> None:
    settings, folder = trial(), tmp_path / "trial"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check(settings, folder, CPU), range(200)))
    assert list(folder.iterdir()) == []
