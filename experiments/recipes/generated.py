"""The full-size studies on generated data: nuScenes' image size, point clouds and ten classes, no nuScenes.

First ``branches_r50`` trains the branches from scratch, without the decoder, then ``pretrain_r50`` the whole
detector, each step under another plan. ``r50_generated`` fine-tunes it with a window bias in some of its six
layers. ``vov`` likewise. ``overfit_r50`` tells within a minute whether the model learns at all. One GPU runs
them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Design, Factor, fraction
from experiments.recipes.nuscenes import CONDITIONS, REST, SITES, plan_of_arm
from experiments.recipes.recipe import Recipe, SyntheticDataset, trials_of
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings

LOADERS = 12
"""Loader processes of a training; a machine with one H200 has 16 cores."""

SWEEPS = 3
"""Earlier scans that are read of a frame. nuScenes' nine make 84,000 voxels of 0.1 m of a generated frame,
these 41,000, and the trained sparse encoder, in single precision, is the dearest part of a step."""


@dataclass(frozen=True)
class Size:
    """One of the two configs of the mission.

    Attributes:
        config: its name without what both have in common.
        images: (height, width) that the model takes, pixels.
        zoom: range of the factor by which training resizes an image, as the config has it.
        batch: frames of a step of the study, as published.
        reach: half the side of the range in m.
        normalises: overrides by which the image backbone learns from scratch.
    """

    config: str
    images: tuple[int, int]
    zoom: tuple[float, float]
    batch: int
    reach: float
    normalises: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """Path of the config."""
        return f"experiments/configs/cmt_aqr_{self.config}_cbgs.py"


_COUNTS = ("model.img_backbone.norm_eval", "false")
"""Published backbones keep the statistics of ImageNet. Without them nothing would normalise the features."""

R50 = Size(
    "voxel0100_r50_800x320",
    (320, 800),
    (0.47, 0.625),
    4,
    51.2,  # published: 54, of which 1024 voxels reach 48.4; a cell lies up to 5.6 m from where it says
    (_COUNTS, ("model.img_backbone.with_cp", "false")),
)
VOV = Size("voxel0075_vov_1600x640", (640, 1600), (0.94, 1.25), 2, 54.0, (_COUNTS,))

TRAINING_DATA = SyntheticDataset(
    "data/full_pretrain", seed=201, frames_per_scene=8, scenes=(("train", 50),), rig="full"
)
"""400 frames that the pretraining sees, about 20 times each: short scenes differ more than long."""

FEW_DATA = SyntheticDataset(
    "data/full_few", seed=401, frames_per_scene=2, scenes=(("train", 4), ("mini_val", 1)), rig="full"
)
"""Eight frames, one step of the pretraining, and two to evaluate."""

STUDY_DATA = SyntheticDataset("data/full_study", seed=301, frames_per_scene=20, rig="full")
"""160 frames to fine-tune on and 40 to evaluate; the pretraining sees none of them."""

FROM_SCRATCH = (
    ("optim_wrapper.paramwise_cfg.custom_keys", "{}"),
    ("model.pts_bbox_head.token_loss_weight", "1.0"),
)
"""Overrides of a config that freezes its branches: all of it trains, and keys have losses of their own."""


def _reading(size: Size) -> tuple[tuple[str, str], ...]:
    """Return overrides by which a config reads and augments generated frames.

    They have no database of cut-out objects to paste, every class is in every scene, so nothing is resampled,
    and the settings say what is masked. All else is the config's own.
    """
    limits = [-size.reach, -size.reach, -5.0, size.reach, size.reach, 3.0]
    load: list[dict[str, Any]] = [
        {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
        {"type": "LoadPointsFromMultiSweeps", "sweeps_num": SWEEPS, "load_dim": 5, "use_dim": 5},
        {"type": "LoadMultiViewImageFromFiles"},
    ]
    image = {
        "H": 900,
        "W": 1600,
        "final_dim": size.images,
        "resize_lim": size.zoom,
        "bot_pct_lim": [0.0, 0.0],
        "rot_lim": [0.0, 0.0],
        "rand_flip": True,
    }
    augment: list[dict[str, Any]] = [
        {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
        {
            "type": "GlobalRotScaleTransAll",
            "rot_range": [-0.785, 0.785],
            "scale_ratio_range": [0.9, 1.1],
            "translation_std": [0.5, 0.5, 0.5],
        },
        {"type": "CustomRandomFlip3D", "flip_ratio_bev_horizontal": 0.5, "flip_ratio_bev_vertical": 0.5},
        {"type": "PointsRangeFilter", "point_cloud_range": limits},
        {"type": "ObjectRangeFilter", "point_cloud_range": limits},
        {"type": "PointShuffle"},
        {"type": "ResizeCropFlipImage", "data_aug_conf": image, "training": True},
    ]
    train = {"type": "NuScenesDataset", "pipeline": [*load, *augment]}
    return (
        ("train_dataloader.dataset", json.dumps(train)),
        ("val_dataloader.dataset.pipeline", json.dumps(load)),
        ("model.use_grid_mask", "false"),
        ("model.pts_voxel_layer.point_cloud_range", json.dumps(limits)),
        ("model.pts_bbox_head.bbox_coder.pc_range", json.dumps(limits)),
    )


def quarter() -> Design:
    """Return the quarter fraction of the window bias over six layers (resolution IV): 16 arms."""
    return fraction([Factor(site) for site in SITES], halvings=2)


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
    alone = (("model.pts_bbox_head.query_losses", "false"),) if branches else ()
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
        overrides=(*FROM_SCRATCH, *alone, *size.normalises, *_reading(size)),
    )
    what = "the branches alone" if branches else "the whole model"
    return Recipe(
        name=name,
        question="Which weights does the full-size study on generated data start from?",
        cost=f"one training of {what}; both together are planned for 12 minutes of one H200 and 16 cores",
        trials=(settings,),
        datasets=(TRAINING_DATA, STUDY_DATA),
    )


_BRANCHES = TrainSettings(
    steps=600,
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


def branches_r50() -> Recipe:
    """Return the training of the branches of the ResNet-50 model, by the losses of the keys alone.

    While the keys say nothing about a frame, the decoder learns to read less and less of them, and it does
    not come back for hundreds of steps (docs/log.md, 2026-11-30). So it begins when they do.
    """
    return _pretraining("branches_r50", R50, _BRANCHES, branches=True)


def _weights_of(training: Recipe) -> str:
    """Return where a recipe of one training leaves its weights."""
    (name,) = training.named_trials()
    return f"runs/{training.name}/trials/{name}/weights.safetensors"


def pretrain_r50() -> Recipe:
    """Return the training of the whole ResNet-50 model, after ``branches_r50``.

    Each sensor is taken from few samples. A sample without points teaches nothing before the image backbone
    sees, and in 8,512 samples, 40 % of them without points, it did not (docs/log.md, 2026-11-30).
    """
    train = replace(_BRANCHES, steps=1600)
    return _pretraining("pretrain_r50", R50, train, init=_weights_of(branches_r50()))


def overfit_r50() -> Recipe:
    """Return a training on the same eight frames, always all of them and as they are.

    ``loss_bbox`` and ``loss_cls`` far below the 1.9 and 0.43 at which the pretraining stayed once show that
    gradients arrive. They do not show that a query reads near its place: to know the frame is enough.
    """
    settings = pretrain_r50().trials[0]
    train = replace(
        settings.train,
        steps=200,
        warmup_steps=30,
        augment=False,
        camera_dropout_prob=0.0,
        lidar_dropout_prob=0.0,
        log_every=10,
    )
    data = replace(settings.data, train=(FEW_DATA.root,), val=FEW_DATA.root)
    return Recipe(
        name="overfit_r50",
        question="Does the full-size model learn eight frames by heart?",
        cost="planned for one minute of one H200",
        trials=(
            replace(
                settings,
                study="overfit_r50",
                data=data,
                train=train,
                init_checkpoint="",
                conditions=("clean",),
            ),
        ),
        datasets=(FEW_DATA,),
    )


def branches_vov() -> Recipe:
    """Return the same of the VoVNet model's branches."""
    train = replace(_BRANCHES, steps=500, batch_size=4, lr_scale=2.0)
    return _pretraining("branches_vov", VOV, train, branches=True)


def pretrain_vov() -> Recipe:
    """Return the same of the whole VoVNet model, with as many samples as the same time allows."""
    train = replace(_BRANCHES, steps=1300, batch_size=4, lr_scale=2.0)
    return _pretraining("pretrain_vov", VOV, train, init=_weights_of(branches_vov()))


def _study(name: str, size: Size, pretraining: Recipe, seeds: Sequence[int]) -> Recipe:
    """Return a sequential study that starts from a pretraining: 16 arms a seed."""
    design = quarter()
    base = TrialSettings(
        study=name,
        config=size.path,
        plan=Plan.of(REST),
        data=DataSettings(train=(STUDY_DATA.root,), val=STUDY_DATA.root, num_loader_workers=LOADERS),
        train=TrainSettings(
            steps=80, batch_size=size.batch, warmup_steps=20, lr_scale=0.5, checkpoint_every=40, amp=True
        ),
        init_checkpoint=_weights_of(pretraining),
        conditions=CONDITIONS,
        device="cuda",
        overrides=_reading(size),
    )
    plans = {arm: plan_of_arm(design, arm) for arm in design.arms}
    looks = tuple(range(2, len(seeds) + 1))
    return Recipe(
        name=name,
        question="In which of CMT's six decoder layers does the window bias pay off, on generated data?",
        cost=f"needs one GPU and the weights of `{pretraining.name}`",
        trials=trials_of(design, base, seeds, plans),
        sites=design.sites,
        rule=DecisionRule(sites=design.sites, seeds=tuple(seeds), arms=design.arms, interim_analyses=looks),
        datasets=(STUDY_DATA,),
        concurrent_trials=None,
        design=design,
        confirmation_seeds=(100, 101),
    )


def r50_generated() -> Recipe:
    """Return the study of the ResNet-50 model: up to four seeds of 16 arms."""
    return _study("r50_generated", R50, pretrain_r50(), range(4))


def vov_generated() -> Recipe:
    """Return the study of the VoVNet model."""
    return _study("vov_generated", VOV, pretrain_vov(), range(4))
