"""Samples to mmdet3d's structures and back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from pipeline.data.sample import DataError, Sample
from pipeline.detector.openmmlab.data_samples import (
    collate,
    num_boxes,
    preprocess,
    read_ground_truth,
    to_detections,
)

MakeSample = Callable[..., Sample]


def test_images_points_and_matrices_arrive_unchanged(make_sample: MakeSample) -> None:
    samples = [make_sample(0), make_sample(1, num_points=0, num_boxes=0)]
    batch = collate(samples)
    for i, sample in enumerate(samples):
        assert batch["inputs"]["img"][i].dtype == torch.uint8
        assert np.array_equal(batch["inputs"]["img"][i].permute(0, 2, 3, 1).numpy(), sample.images)
        assert np.array_equal(batch["inputs"]["points"][i].numpy(), sample.points)
        meta = batch["data_samples"][i].metainfo
        assert np.array_equal(meta["lidar2img"], sample.lidar2img)
        assert meta["lidar2img"].dtype == np.float64
        assert meta["token"] == sample.token


def test_the_device_and_not_the_host_puts_colours_apart(make_sample: MakeSample) -> None:
    samples, seen = [make_sample(0), make_sample(1)], {}

    class Preprocessor:
        device = torch.device("cpu")

        def __call__(self, data: dict, training: bool) -> dict:
            seen.update(data["inputs"])
            return {"inputs": {"imgs": torch.stack(data["inputs"]["img"])}}

    batch = collate(samples)
    preprocess(Preprocessor(), batch, training=True)
    for sample, image, given in zip(samples, batch["inputs"]["img"], seen["img"], strict=True):
        assert np.shares_memory(image.numpy(), sample.images)
        assert given.is_contiguous()
        assert np.array_equal(given.numpy(), sample.images.transpose(0, 3, 1, 2))


def test_boxes_go_there_and_back(make_sample: MakeSample) -> None:
    sample = make_sample(3)
    boxes = sample.boxes.copy()
    boxes[0, 7:] = np.nan  # unknown velocity
    (made,) = collate([replace(sample, boxes=boxes)])["data_samples"]
    truth = made.gt_instances_3d
    # 1e-6: one addition and one subtraction of half a height in fp32
    assert np.allclose(truth.bboxes_3d.gravity_center.numpy(), boxes[:, :3], atol=1e-6)
    scores = torch.linspace(0.9, 0.1, len(boxes))
    made.pred_instances_3d = InstanceData(
        bboxes_3d=truth.bboxes_3d, scores_3d=scores.flip(0), labels_3d=truth.labels_3d
    )
    (found,) = to_detections([made])
    assert np.allclose(found.boxes[::-1], boxes, atol=1e-6, equal_nan=True)
    assert np.array_equal(found.labels[::-1], sample.labels)
    assert (np.diff(found.scores) <= 0).all()


def test_a_frame_without_boxes_has_an_empty_truth(make_sample: MakeSample) -> None:
    (made,) = collate([make_sample(0, num_boxes=0)])["data_samples"]
    assert made.gt_instances_3d.bboxes_3d.tensor.shape == (0, 9)
    assert made.gt_instances_3d.labels_3d.shape == (0,)


def test_images_of_two_sizes_and_no_sample_are_refused(make_sample: MakeSample) -> None:
    with pytest.raises(DataError, match="images of one size"):
        collate([make_sample(0), make_sample(1, size=(48, 120))])
    with pytest.raises(DataError, match="got none"):
        collate([])


def truth_of(make_sample: MakeSample, labels: list[int]) -> list[Any]:
    """A data sample whose boxes are told apart by their lengths 1, 2, ..."""
    boxes = np.ones((len(labels), 9), np.float32)
    boxes[:, 3] = np.arange(1, len(labels) + 1)
    sample = replace(make_sample(0), boxes=boxes, labels=np.asarray(labels, np.int64))
    return list(collate([sample])["data_samples"])


def test_boxes_that_do_not_count_are_left_out(make_sample: MakeSample) -> None:
    """mmdet3d labels objects of no class with -1."""
    samples = truth_of(make_sample, [-1, 2, 5, -1])
    (boxes,), (labels,) = read_ground_truth(samples, torch.device("cpu"), 10)
    assert labels.tolist() == [2, 5]
    assert boxes[:, 3].tolist() == [2.0, 3.0]
    assert num_boxes(samples) == [2]


def test_labels_that_the_head_does_not_have_are_refused(make_sample: MakeSample) -> None:
    samples = truth_of(make_sample, [0, 3])
    with pytest.raises(DataError, match="the label 3, the head has 3 classes"):
        read_ground_truth(samples, torch.device("cpu"), 3)
    assert read_ground_truth(samples, torch.device("cpu"), 4)[1][0].tolist() == [0, 3]


def test_boxes_without_velocity_are_refused(make_sample: MakeSample) -> None:
    (sample,) = truth_of(make_sample, [0])
    boxes = LiDARInstance3DBoxes(torch.ones(1, 7), box_dim=7)
    sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=torch.tensor([0]))
    with pytest.raises(DataError, match="boxes have 7 numbers, expected 9 with the velocity"):
        read_ground_truth([sample], torch.device("cpu"), 10)
