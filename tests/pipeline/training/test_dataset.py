"""What a trial is fed: its config's train_pipeline where there is one, its settings elsewhere."""

import numpy as np
import pytest

from pipeline.data.augmentation.train_pipeline import TrainPipeline
from pipeline.errors import TrialError
from pipeline.training.dataset import TrainingData

WITH_PIPELINE = "experiments/configs/cmt_aqr_pillar_mini_runner.py"
IMAGES = """{"type": "ResizeCropFlipImage", "data_aug_conf": {"H": 225, "W": 400, "final_dim": [96, 240],
    "resize_lim": [0.6, 0.7], "bot_pct_lim": [0, 0], "rot_lim": [0, 0], "rand_flip": false}}"""
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


def test_the_settings_mask_where_the_pipeline_masks_nothing(trial):
    """And last, so that no object is pasted into what is masked."""
    dataset = f"""{{"type": "NuScenesDataset", "pipeline": [{{"type": "PointShuffle"}}, {IMAGES}]}}"""
    overrides = (("train_dataloader.dataset", dataset),)
    masks = {"camera_dropout_prob": 0.5, "lidar_dropout_prob": 0.5}
    training_data = TrainingData(trial(config=WITH_PIPELINE, overrides=overrides, **masks), SIZE, LIMITS)
    frame, transform = training_data.source[0], training_data.transform.at(0)
    made = [transform(frame, np.random.default_rng(seed)) for seed in range(8)]
    assert {(bool(one.images.any()), bool(len(one.points))) for one in made} == {(True, False), (False, True)}
    assert made[0].images.shape == (6, *SIZE, 3)


def test_settings_and_config_cannot_both_mask(trial):
    dataset = '{"type": "NuScenesDataset", "pipeline": [{"type": "ModalMask3D", "mode": "train"}]}'
    twice = trial(
        config=WITH_PIPELINE, overrides=(("train_dataloader.dataset", dataset),), camera_dropout_prob=0.25
    )
    with pytest.raises(TrialError, match="says itself what is masked"):
        TrainingData(twice, SIZE, LIMITS)


def test_the_config_makes_images_of_another_size(trial):
    with pytest.raises(TrialError, match=r"makes images of \(96, 240\), the model takes \(320, 800\)"):
        TrainingData(trial(config=WITH_PIPELINE, overrides=()), (320, 800), LIMITS)
