"""The studies of the mini model on generated data, which a laptop can run: demo, variants, smoke tests."""

from dataclasses import replace

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Design, Factor, full, plan_of
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.recipe import EarlyStoppingRule, Recipe, SyntheticDataset, trials_of
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings

MINI_CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"
MINI_CHECKPOINT = "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"
CONDITIONS = ("clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras")
CROSS_SITES = ("decoder.0.cross", "decoder.1.cross", "decoder.2.cross")
"""The cross-attention of each decoder layer of the mini model: the factors of its studies."""

IMPL = "gathered"
"""The implementation of these studies on a CPU, with and without a bias."""

GPU_IMPL = "sdpa_math"
"""The implementation on a GPU. It runs on every machine, with every bias and every gradient."""


def _rest(aqr: str, own: str) -> dict[str, str]:
    return {"aqr.0.cross": f"local/{aqr}", "decoder.*.self": f"none/{own}"}


REST = _rest(IMPL, "sdpa_flash")
"""Choices at the other sites on a CPU, as published: AQR under the local mask, self-attention without bias.
The mask of the denoising queries is a matrix, which ``gathered`` does not take."""

GPU_REST = _rest(GPU_IMPL, GPU_IMPL)
"""The same choices on a GPU."""


def mini_design(num_layers: int = len(CROSS_SITES)) -> Design:
    """Return the full factorial of the window bias over the first cross-attentions of the mini model."""
    return full([Factor(site) for site in CROSS_SITES[:num_layers]])


def factorial(gpu: bool = False) -> tuple[Plan, ...]:
    """Return the plans of the full factorial on a CPU or a GPU, no bias anywhere first."""
    design, rest, impl = mini_design(), *((GPU_REST, GPU_IMPL) if gpu else (REST, IMPL))
    return tuple(plan_of(design, arm, rest, impl) for arm in design.arms)


def cross_plan(biases: tuple[str, ...]) -> Plan:
    """Return the mini model's plan on a CPU with the given bias kinds on its cross-attentions."""
    return Plan.of(REST | {site: f"{bias}/{IMPL}" for site, bias in zip(CROSS_SITES, biases, strict=True)})


MINI = SyntheticDataset("data/mini", seed=7)
"""What the mini's studies train and evaluate on."""


def _fine_tuning(study: str) -> TrialSettings:
    """Return what the trials of the mini's studies share."""
    return TrialSettings(
        study=study,
        config=MINI_CONFIG,
        plan=cross_plan(("none",) * 3),
        data=DataSettings(train=(MINI.root,), val=MINI.root),
        # 80 of the 160 frames, gently: at half the config's rate 40 steps lose a point of mAP
        train=TrainSettings(steps=40, batch_size=2, warmup_steps=10, lr_scale=0.2),
        init_checkpoint=MINI_CHECKPOINT,
        overrides=(KEPT_STATISTICS,),
        conditions=CONDITIONS,
        torch_threads=1,  # two trials on two cores: their start-ups overlap, no thread waits for another
    )


def demo() -> Recipe:
    """Return the demo: a 2^3 factorial of the window bias over the decoder's layers, two seeds."""
    base = _fine_tuning("demo")
    trials = tuple(replace(base, plan=plan, seed=seed) for seed in (0, 1) for plan in factorial())
    return Recipe(
        name="demo",
        question="In which decoder layers does the window bias of the cross-attention pay off?",
        cost="2 CPU cores",
        trials=trials,
        sites=CROSS_SITES,
        rule=DecisionRule(sites=CROSS_SITES, seeds=(0, 1), stopwatch_s=100.0),
        datasets=(MINI,),
        concurrent_trials=2,
    )


def demo_gpu() -> Recipe:
    """Return the demo on a GPU, with as many concurrent trials as the probe finds best."""
    base = replace(_fine_tuning("demo_gpu"), device="cuda", torch_threads=1)
    trials = tuple(replace(base, plan=plan, seed=seed) for seed in (0, 1) for plan in factorial(gpu=True))
    return replace(
        demo(),
        name="demo_gpu",
        cost="needs one GPU",
        trials=trials,
        concurrent_trials=None,
    )


def demo_waves() -> Recipe:
    """Return the demo as a sequential study: seed by seed, until all is settled or eight seeds have run."""
    design, seeds = mini_design(), tuple(range(8))
    plans = {arm: plan_of(design, arm, REST, IMPL) for arm in design.arms}
    return Recipe(
        name="demo_waves",
        question="In which decoder layers does the window bias of the cross-attention pay off?",
        cost="2 CPU cores",
        trials=trials_of(design, _fine_tuning("demo_waves"), seeds, plans),
        sites=design.sites,
        rule=DecisionRule(
            sites=design.sites, seeds=seeds, arms=design.arms, interim_analyses=(2, 3, 4, 6, 8)
        ),
        datasets=(MINI,),
        concurrent_trials=2,
        design=design,
        early_stopping=EarlyStoppingRule(steps=(20,)),
        confirmation_seeds=(100, 101),
    )


def _pretraining(name: str, train: TrainSettings, init: str = "") -> Recipe:
    """Return one training of the whole model on datasets that ``demo`` does not use.

    Each step trains one of the eight plans that ``demo`` compares, so that no arm starts with an
    advantage. The config of the mini freezes its branches by multipliers of the learning rate; this
    training removes the multipliers.
    """
    plain, *others = factorial(gpu=True)
    datasets = tuple(
        SyntheticDataset(f"data/pretrain_{seed}", seed, scenes=(("mini_train", 8), ("mini_val", 1)))
        for seed in range(101, 113)
    )
    settings = TrialSettings(
        study=name,
        config=MINI_CONFIG,
        plan=plain,
        plan_mixture=tuple(others),
        data=DataSettings(
            train=tuple(dataset.root for dataset in datasets), val=datasets[0].root, num_loader_workers=6
        ),
        train=train,
        init_checkpoint=init,
        conditions=CONDITIONS,
        device="cuda",
        overrides=(("optim_wrapper.paramwise_cfg.custom_keys", "{}"),),
    )
    return Recipe(
        name=name,
        question="Which weights does the demo start from?",
        cost="about 7 minutes on one H200 and 8 cores",
        trials=(settings,),
        datasets=datasets,
    )


def pretrain() -> Recipe:
    """Return the first stage of the shipped checkpoint: CMT's masked-modal training, from scratch."""
    train = TrainSettings(
        steps=1665,
        batch_size=16,
        warmup_steps=300,
        lr_scale=2.0,
        camera_dropout_prob=0.25,
        lidar_dropout_prob=0.25,
        checkpoint_every=500,
        log_every=50,
    )
    return _pretraining("pretrain", train)


def pretrain_cameras() -> Recipe:
    """Return the second stage of the shipped checkpoint: half of the samples have no points.

    After the first stage the detector uses only the points, which give positions and most classes. Without
    points it learns to use the images, and it then uses them with both sensors as well.
    """
    train = TrainSettings(
        steps=1765,
        batch_size=32,
        warmup_steps=300,
        lr_scale=2.0,
        camera_dropout_prob=0.1,
        lidar_dropout_prob=0.5,
        checkpoint_every=1000,
        log_every=25,
    )
    (first,) = pretrain().named_trials()
    return _pretraining("pretrain_cameras", train, init=f"runs/pretrain/trials/{first}/weights.safetensors")


def smoke() -> Recipe:
    """Return two trials of a few steps on four scenes of two frames: every part runs, nothing is learned."""
    tiny = SyntheticDataset(
        "data/smoke", seed=3, frames_per_scene=2, scenes=(("mini_train", 2), ("mini_val", 2))
    )
    base = TrialSettings(
        study="smoke",
        config=MINI_CONFIG,
        plan=cross_plan(("none",) * 3),
        data=DataSettings(train=(tiny.root,), val=tiny.root),
        train=TrainSettings(steps=3, batch_size=1, warmup_steps=1, checkpoint_every=2, log_every=1),
        torch_threads=1,
    )
    plans = [cross_plan(("none",) * 3), cross_plan(("window", "none", "none"))]
    return Recipe(
        name="smoke",
        question="Does every part run?",
        cost="trials of 3 steps",
        trials=tuple(replace(base, plan=plan) for plan in plans),
        sites=CROSS_SITES[:1],
        rule=DecisionRule(sites=CROSS_SITES[:1], seeds=(0,), stopwatch_s=3.0),
        datasets=(tiny,),
        concurrent_trials=2,
        underpowered=True,
    )


def smoke_waves() -> Recipe:
    """Return a sequential study of a few steps, with waves, early stopping and a confirmation."""
    base = replace(smoke().trials[0], study="smoke_waves")
    design, seeds = mini_design(2), (0, 1, 2)
    rest = REST | {CROSS_SITES[2]: f"none/{IMPL}"}
    plans = {arm: plan_of(design, arm, rest, IMPL) for arm in design.arms}
    return Recipe(
        name="smoke_waves",
        question="Does every part of a sequential study run?",
        cost="trials of 3 steps",
        trials=trials_of(design, base, seeds, plans),
        sites=design.sites,
        rule=DecisionRule(
            sites=design.sites, seeds=seeds, arms=design.arms, interim_analyses=(1, 2, 3), stopwatch_s=3.0
        ),
        datasets=smoke().datasets,
        concurrent_trials=2,
        design=design,
        early_stopping=EarlyStoppingRule(steps=(2,)),
        confirmation_seeds=(100,),
        underpowered=True,
    )
