"""The full-size studies on generated data: nuScenes' image size, point clouds and ten classes, no nuScenes.

First ``pretrain_r50`` trains a detector from scratch, each step under another plan. ``r50_generated`` and
``vov_generated`` fine-tune it with a window bias in some of its six layers. One GPU runs them.
"""

from collections.abc import Sequence
from dataclasses import replace

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Design, Factor, fraction
from experiments.recipes.nuscenes import CONDITIONS, REST, SITES, plan_of_arm
from experiments.recipes.recipe import Recipe, SyntheticDataset, trials_of
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings

LOADERS = 12
"""Loader processes of a training; a machine with one H200 has 16 cores."""

R50, VOV = "voxel0100_r50_800x320", "voxel0075_vov_1600x640"
"""The two configs of the mission by size."""

TRAINING_DATA = tuple(
    SyntheticDataset(f"data/full_{seed}", seed, frames_per_scene=8, scenes=(("mini_train", 8),), rig="full")
    for seed in range(201, 208)
)
"""448 frames that the pretraining sees."""

STUDY_DATA = SyntheticDataset("data/full_study", seed=301, frames_per_scene=20, rig="full")
"""160 frames to fine-tune on and 40 to evaluate; the pretraining sees none of them."""

ALL_TRAINED = (("optim_wrapper.paramwise_cfg.custom_keys", "{}"),)
"""Override of a config that freezes its branches: from scratch everything trains."""


def quarter() -> Design:
    """Return the quarter fraction of the window bias over six layers (resolution IV): 16 arms."""
    return fraction([Factor(site) for site in SITES], halvings=2)


def _pretraining(name: str, size: str, train: TrainSettings) -> Recipe:
    """Return one training of a whole model; no arm of the study that follows starts with an advantage."""
    design = quarter()
    plain, *others = (plan_of_arm(design, arm) for arm in design.arms)
    settings = TrialSettings(
        study=name,
        config=f"experiments/configs/cmt_aqr_{size}_cbgs.py",
        plan=plain,
        plan_mixture=tuple(others),
        data=DataSettings(
            train=tuple(dataset.root for dataset in TRAINING_DATA),
            val=STUDY_DATA.root,
            num_loader_workers=LOADERS,
        ),
        train=train,
        conditions=CONDITIONS,
        device="cuda",
        overrides=ALL_TRAINED,
    )
    return Recipe(
        name=name,
        question="Which weights does the full-size study on generated data start from?",
        cost="one training of the whole model, planned for 12 minutes of one H200 and 16 cores",
        trials=(settings,),
        datasets=(*TRAINING_DATA, STUDY_DATA),
    )


def pretrain_r50() -> Recipe:
    """Return the training of the full-size ResNet-50 model from scratch, with CMT's masked modalities."""
    train = TrainSettings(
        steps=2400,
        batch_size=8,
        warmup_steps=200,
        lr_scale=2.0,
        camera_dropout_prob=0.25,
        lidar_dropout_prob=0.25,
        checkpoint_every=200,
        log_every=25,
        amp=True,
    )
    return _pretraining("pretrain_r50", R50, train)


def pretrain_vov() -> Recipe:
    """Return the same of the VoVNet model, with as many samples as the same time allows."""
    train = replace(pretrain_r50().trials[0].train, steps=2000, batch_size=4)
    return _pretraining("pretrain_vov", VOV, train)


def _study(name: str, size: str, batch: int, pretraining: Recipe, seeds: Sequence[int]) -> Recipe:
    """Return a sequential study that starts from a pretraining: 16 arms a seed."""
    design = quarter()
    (first,) = pretraining.named_trials()
    base = TrialSettings(
        study=name,
        config=f"experiments/configs/cmt_aqr_{size}_cbgs.py",
        plan=Plan.of(REST),
        data=DataSettings(train=(STUDY_DATA.root,), val=STUDY_DATA.root, num_loader_workers=LOADERS),
        train=TrainSettings(
            steps=80, batch_size=batch, warmup_steps=20, lr_scale=0.5, checkpoint_every=40, amp=True
        ),
        init_checkpoint=f"runs/{pretraining.name}/trials/{first}/weights.safetensors",
        conditions=CONDITIONS,
        device="cuda",
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
    return _study("r50_generated", R50, 4, pretrain_r50(), range(4))


def vov_generated() -> Recipe:
    """Return the study of the VoVNet model."""
    return _study("vov_generated", VOV, 2, pretrain_vov(), range(4))
