"""Overrides on the command line."""

import json

import pytest

from experiments.overrides import OverrideError, read_overrides
from pipeline.detector.build import load_config

CONFIG = "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=window", "window"),
        ("a.b=True", True),
        ("a.b=None", None),
        ('a.b="3"', "3"),
        ("a.b=", ""),
    ],
)
def test_overrides_read_like_those_of_mmengine(text: str, value: object) -> None:
    ((key, found),) = read_overrides([text])
    assert (key, json.loads(found)) == ("a.b", value)


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(OverrideError, match=r"--cfg-options a.b: expected KEY=VALUE"):
        read_overrides(["a.b"])


def test_overrides_reach_a_config_with_bases() -> None:
    words = ["optim_wrapper.optimizer.lr=3e-5", "model.pts_bbox_head.aqr_config.window_camera=9"]
    cfg = load_config(CONFIG, read_overrides(words))
    assert cfg.optim_wrapper.optimizer.lr == 3e-5
    assert cfg.model.pts_bbox_head.aqr_config.window_camera == 9
    assert cfg.model.pts_bbox_head.aqr_config.window_lidar == 5
