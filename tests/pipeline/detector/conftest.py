"""Fixtures of the detector tests."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline.detector  # noqa: F401  first: tests import mmdet3d, which it prepares
from pipeline.data.sample import Sample

SPEC = importlib.util.spec_from_file_location("detector_parity", Path(__file__).with_name("parity.py"))

YAWS_DEG = (0, -55, 55, 180, 110, -110)


@pytest.fixture(scope="session")
def published():
    """The module that knows the published implementation's weights and configs."""
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def parity(published):
    """Golden numbers of the published implementation; skips where they are absent."""
    return published.Parity()


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_sample():
    """Factory of random frames for the mini model: six 96 x 240 images, points, boxes, a surround rig."""
    return _make_sample


def _make_sample(seed=0, num_points=2000, num_boxes=6, size=(96, 240)):
    rng = np.random.default_rng(seed)
    height, width = size
    reach, angle = rng.uniform(2, 50, num_points), rng.uniform(0, 2 * np.pi, num_points)
    height_m = rng.uniform(-2, 1, num_points)
    points = [
        reach * np.cos(angle),
        reach * np.sin(angle),
        height_m,
        rng.uniform(0, 255, num_points),
        0 * reach,
    ]
    boxes = np.concatenate(
        [
            rng.uniform([-40, -40, -1.5], [40, 40, 0.5], (num_boxes, 3)),
            rng.uniform(0.5, 5, (num_boxes, 3)),
            rng.uniform(-3, 3, (num_boxes, 1)),
            rng.normal(size=(num_boxes, 2)),
        ],
        axis=1,
    )
    return Sample(
        token=f"token{seed}",
        scene="scene",
        images=rng.integers(0, 255, (len(YAWS_DEG), height, width, 3), dtype=np.uint8),
        points=np.stack(points, axis=1).astype(np.float32),
        lidar2img=np.stack([_camera(yaw, size) for yaw in np.deg2rad(YAWS_DEG)]),
        boxes=boxes.astype(np.float32),
        labels=rng.integers(0, 10, num_boxes),
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
    )


def _camera(yaw, size):
    """A pinhole with about 65 degrees of view that looks along +y, turned by ``yaw`` about z."""
    height, width = size
    focal = 0.8 * width
    intrinsics = np.array([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    cos, sin = np.cos(yaw), np.sin(yaw)
    return intrinsics @ np.array([[cos, sin, 0, 0], [0, 0, -1, 0], [-sin, cos, 0, 0], [0, 0, 0, 1]])
