"""The full-size studies on nuScenes; they need the data and GPUs.

They fine-tune CMT-AQR from the published weights of CMT. Those weights were trained without a bias, so an
arm with a bias starts at a disadvantage. A trial therefore takes a whole epoch.
"""

from dataclasses import replace

from experiments.recipes.decision_rule import SCREENING, DecisionRule
from experiments.recipes.factorial import Arm, Design, Factor, fraction, full, plan_of
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.layer_study import layer_study
from experiments.recipes.recipe import EarlyStoppingRule, Recipe, trials_of
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings

SITES = tuple(f"decoder.{layer}.cross" for layer in range(6))
"""The cross-attention of CMT's six decoder layers."""

CONDITIONS = ("clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras")

IMPLS = {"none": "rects", "window": "rects"}
"""Bias -> its fastest exact implementation on a Hopper GPU (docs/operators.md); it changes only the price."""

REST = {"aqr.0.cross": "local/rects", "decoder.*.self": "none/sdpa_efficient"}
"""Choices at the other sites. A flash kernel cannot take the denoising mask of the self-attention."""

FRAMES = 28_130
"""Key frames of nuScenes' training split."""

BATCH = 16
"""Frames per step: 2 on each of 8 GPUs, as CMT is trained."""


def _base(study: str, size: str, workers: int) -> TrialSettings:
    """Return the settings that the trials share: an epoch on nuScenes in bfloat16."""
    return TrialSettings(
        study=study,
        config=f"experiments/configs/cmt_aqr_{size}_cbgs.py",
        plan=Plan(()),
        data=DataSettings(
            train=("data/nuscenes",),
            val="data/nuscenes",
            nuscenes_version="v1.0-trainval",
            train_split="train",
            val_split="val",
            num_loader_workers=6,
        ),
        train=TrainSettings(
            steps=FRAMES // BATCH,
            batch_size=BATCH // workers,
            warmup_steps=100,
            checkpoint_every=250,
            log_every=50,
            amp=True,
        ),
        init_checkpoint=f"checkpoints/cmt_{size}_cbgs.pth",
        overrides=(KEPT_STATISTICS,),
        conditions=CONDITIONS,
        num_workers=workers,
        device="cuda",
    )


def plan_of_arm(design: Design, arm: Arm) -> Plan:
    """Return the plan of an arm of a full-size model, each bias with its implementation."""
    return plan_of(design, arm, REST, IMPLS)


def quarter() -> Design:
    """Return the quarter fraction of the window bias over six layers (resolution IV): 16 arms."""
    return fraction([Factor(site) for site in SITES], halvings=2)


def _sequential(name: str, size: str, workers: int) -> Recipe:
    """Return a sequential study of the quarter fraction."""
    design, seeds = quarter(), (0, 1, 2, 3)
    base = _base(name, size, workers)
    return layer_study(
        base,
        design,
        impls=IMPLS,
        rest=REST,
        seeds=seeds,
        rule=DecisionRule(),
        question="In which of CMT's six decoder layers does the window bias of the cross-attention pay off?",
        cost="needs nuScenes and CMT's weights",
        early_stopping=EarlyStoppingRule(steps=(FRAMES // BATCH // 3,)),
        confirmation_seeds=(100, 101),
    )


def r50_waves() -> Recipe:
    """Return the sequential study of the ResNet-50 model."""
    return _sequential("r50_waves", "voxel0100_r50_800x320", 8)


def r50_screened() -> Recipe:
    """Return the sequential study whose screening orders the layers by the gain to be expected.

    After its first wave it waits for `biaswise study screen r50_screened`, one more training, with a seed of
    its own.
    """
    plain = r50_waves()
    assert plain.rule is not None  # it has a design
    return replace(plain.renamed("r50_screened"), rule=replace(plain.rule, order_by=SCREENING))


def vov_waves() -> Recipe:
    """Return the sequential study of the VoVNet model."""
    return _sequential("vov_waves", "voxel0075_vov_1600x640", 8)


def r50() -> Recipe:
    """Return the full grid of the ResNet-50 model, with which the sequential study is compared."""
    design, seeds = full([Factor(site) for site in SITES]), (0, 1, 2)
    base = _base("r50", "voxel0100_r50_800x320", 8)
    return replace(
        r50_waves(),
        name="r50",
        cost="needs nuScenes and CMT's weights; `r50_waves` asks the same for less",
        trials=trials_of(design, base, seeds, {arm: plan_of_arm(design, arm) for arm in design.arms}),
        rule=DecisionRule(sites=design.sites, seeds=seeds),
        design=None,
        early_stopping=None,
        confirmation_seeds=(),
    )
