"""What a trial is fed: its config's train_pipeline where there is one, its settings elsewhere."""

import numpy as np
import pytest

from pipeline.data.augmentation.train_pipeline import TrainPipeline
from pipeline.errors import TrialError
from pipeline.training.dataset import TrainingData

WITH_PIPELINE = "experiments/configs/cmt_aqr_pillar_mini_runner.py"
SIZE, LIMITS = (96, 240), (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def test_a_config_with_a_train_pipeline_decides(trial):
    training_data = TrainingData(trial(config=WITH_PIPELINE, overrides=()), SIZE, LIMITS)
    assert isinstance(training_data.transform, TrainPipeline)
    made = training_data.transform.at(0)(training_data.source[0], np.random.default_rng(0))
    assert made.images.shape == (6, *SIZE, 3)


def test_without_augmentation_a_frame_is_resized_alone(trial):
    training_data = TrainingData(trial(config=WITH_PIPELINE, overrides=(), augment=False), SIZE, LIMITS)
    one, two = (
        training_data.transform(training_data.source[0], np.random.default_rng(seed)) for seed in (0, 1)
    )
    np.testing.assert_array_equal(one.points, two.points)
    assert one.images.shape == (6, *SIZE, 3)


def test_a_config_without_one_leaves_it_to_the_settings(trial):
    training_data = TrainingData(trial(lidar_dropout_prob=1.0), SIZE, LIMITS)
    assert not len(training_data.transform(training_data.source[0], np.random.default_rng(0)).points)


def test_a_wrapper_resamples_the_frames(trial):
    dataset = '{"type": "CBGSDataset", "dataset": {"pipeline": [{"type": "PointShuffle"}]}}'
    overrides = (("train_dataloader.dataset", dataset),)
    training_data = TrainingData(
        trial(config=WITH_PIPELINE, overrides=overrides, augment=False), SIZE, LIMITS
    )
    plain = TrainingData(trial(config=WITH_PIPELINE, overrides=(), augment=False), SIZE, LIMITS)
    assert len(training_data.source) > 2 * len(plain.source)  # every class is in every frame: tenfold


@pytest.mark.parametrize(
    ("changes", "size", "sentence"),
    [
        ({"camera_dropout_prob": 0.25}, SIZE, "says itself what is masked"),
        ({}, (320, 800), r"makes images of \(96, 240\), the model takes \(320, 800\)"),
    ],
)
def test_settings_that_contradict_the_config(trial, changes, size, sentence):
    with pytest.raises(TrialError, match=sentence):
        TrainingData(trial(config=WITH_PIPELINE, overrides=(), **changes), size, LIMITS)
