"""Trainings from scratch: first the branches of a full-size model, then the whole."""

import json
from dataclasses import replace

from experiments.recipes.generated.datasets import LOADERS, STUDY_DATA, TRAINING_DATA
from experiments.recipes.generated.model import R50, VOV, Size, shared_overrides
from experiments.recipes.nuscenes import CONDITIONS, plan_of_arm, quarter
from experiments.recipes.recipe import Recipe
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings

SLOW = {"bev_embedding": 0.02, "rv_embedding": 0.02}
"""Parts of the model with a lower rate of learning, and the factors.

Fresh position embeddings tell near places apart by small differences, which the full rate overwrites within a
hundred steps (docs/log.md, 2026-11-30)."""

KEPT = {"pts_middle_encoder": 0.0}
"""The sparse encoder, once the branches are trained. A step of eight frames a GPU took about 270 ms while
it trained, 220 without (two H200, one run each, which differ in the neck's norms, too)."""

_BRANCHES = TrainSettings(
    steps=500,
    batch_size=8,
    warmup_steps=50,
    lr_scale=4.0,  # 5.6e-4; CMT's cycle peaks at 8.4e-4 with 16 frames a step
    camera_dropout_prob=0.1,
    lidar_dropout_prob=0.1,
    checkpoint_every=150,
    log_every=20,
    amp=True,
    cuda_graphs=False,  # sixteen plans, each with some numbers of queries: few would come again in time
)

_LARGE_BRANCHES = replace(_BRANCHES, batch_size=4, lr_scale=2.0)
"""Of the VoVNet model: half as many frames in a step. 4e-4 is 5.6e-4 over the root of two, so that AdamW's
steps are as noisy."""


def branches_r50() -> Recipe:
    """Return the training of the branches of the ResNet-50 model, by the losses of the keys alone.

    While the keys say nothing about a frame, the decoder learns to read less and less of them, and it does
    not come back for hundreds of steps (docs/log.md, 2026-11-30). So it begins when they do.
    """
    return _pretraining("branches_r50", R50, _BRANCHES, branches=True)


def pretrain_r50() -> Recipe:
    """Return the training of the whole ResNet-50 model, after ``branches_r50``.

    Each sensor is taken from few samples. A sample without points teaches nothing before the image backbone
    sees, and in 8,512 samples, 40 % of them without points, it did not (docs/log.md, 2026-11-30).
    """
    train = replace(_BRANCHES, steps=1300)
    return _pretraining("pretrain_r50", R50, train, init=weights_of(branches_r50()))


def branches_vov() -> Recipe:
    """Return the same of the VoVNet model's branches."""
    return _pretraining("branches_vov", VOV, _LARGE_BRANCHES, branches=True)


def pretrain_vov() -> Recipe:
    """Return the same of the whole VoVNet model, with as many samples as the same time allows."""
    train = replace(_LARGE_BRANCHES, steps=1300)
    return _pretraining("pretrain_vov", VOV, train, init=weights_of(branches_vov()))


def weights_of(training: Recipe) -> str:
    """Return where a recipe of one training leaves its weights."""
    (name,) = training.named_trials()
    return f"runs/{training.name}/trials/{name}/weights.safetensors"


def _pretraining(
    name: str, size: Size, train: TrainSettings, init: str = "", branches: bool = False
) -> Recipe:
    """Return one training; no arm of the study that follows starts with an advantage.

    Args:
        name: of the recipe.
        size: of the model.
        train: how long and how fast.
        init: weights to start from; empty: fresh ones.
        branches: train the branches alone.
    """
    design = quarter()
    plain, *others = (plan_of_arm(design, arm) for arm in design.arms)
    rates = SLOW if branches else SLOW | KEPT
    from_scratch = {
        "optim_wrapper.paramwise_cfg.custom_keys": {part: {"lr_mult": rate} for part, rate in rates.items()},
        "model.pts_bbox_head.token_loss_weight": 1.0,
        "model.pts_bbox_head.query_losses": not branches,
    }
    settings = TrialSettings(
        study=name,
        config=size.path,
        plan=plain,
        plan_mixture=() if branches else tuple(others),
        data=DataSettings(
            train=(TRAINING_DATA.root,),
            val=STUDY_DATA.root,
            train_split=TRAINING_DATA.scenes[0][0],
            num_loader_workers=LOADERS,
        ),
        train=train,
        init_checkpoint=init,
        conditions=("clean",) if branches else CONDITIONS,
        device="cuda",
        overrides=(
            *((key, json.dumps(value)) for key, value in from_scratch.items()),
            *size.normalises,
            *shared_overrides(size),
        ),
    )
    what = "the branches alone" if branches else "the whole model"
    return Recipe(
        name=name,
        question="Which weights does the full-size study on generated data start from?",
        cost=f"one training of {what}; both together are planned for 12 minutes of one H200 and 16 cores",
        trials=(settings,),
        datasets=(TRAINING_DATA, STUDY_DATA),
    )
