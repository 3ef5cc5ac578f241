"""One real nuScenes frame through info file, transforms, detector and loss: the loss falls."""

from pathlib import Path

import pytest
import torch

from pipeline.data.augmentation.transforms import filter_range, resize_crop
from pipeline.data.formats.infos.reader import InfoSource
from pipeline.detector.build import build_model, load_config
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.openmmlab.optimizer import build_optimizer, clip_norm
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.training.step import TrainStep, loss_of, lr_factor

FRAME = Path(__file__).parents[4] / "shared/data/nuscenes_frame/n015-2018-07-24-11-22-45+0800.pkl"
CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"
EVERYTHING = (("optim_wrapper.paramwise_cfg.custom_keys", "{}"),)  # train the branches too
STEPS = 30


@pytest.mark.skipif(not FRAME.exists(), reason=f"the real nuScenes frame is not at {FRAME}")
def test_the_mini_model_learns_the_real_frame() -> None:
    deterministic(torch.device("cpu"), threads=1)
    seed_everything(0)
    model = build_model(CONFIG, EVERYTHING)
    wrapper = load_config(CONFIG, EVERYTHING).optim_wrapper
    limit = clip_norm(wrapper)
    assert limit == 35.0
    train_step = TrainStep(model, build_optimizer(model, wrapper), limit)
    sample = filter_range(resize_crop(InfoSource(FRAME)[0], model.image_size), model.point_range)
    assert len(sample.boxes) == 52
    losses = []
    for step in range(STEPS):
        seed_everything(0, step)
        model.train()
        losses.append(loss_of(train_step.step(collate([sample]), lr_factor(step, STEPS, 3))))
    assert losses[0] < 30  # ordinary boxes at their reference points
    assert sum(losses[-5:]) / 5 < 0.85 * losses[0]
