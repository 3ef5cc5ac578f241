"""The studies: which decoder layers of a pretrained full-size model should have a window bias?"""

from collections.abc import Sequence

from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.fine_tuning import KEPT_STATISTICS
from experiments.recipes.generated.datasets import LOADERS, STUDY_DATA
from experiments.recipes.generated.model import R50, VOV, Size, shared_overrides
from experiments.recipes.generated.pretraining import pretrain_r50, pretrain_vov, weights_of
from experiments.recipes.nuscenes import CONDITIONS, REST, plan_of_arm, quarter
from experiments.recipes.recipe import Recipe, trials_of
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrainSettings, TrialSettings


def _study(name: str, size: Size, pretraining: Recipe, seeds: Sequence[int]) -> Recipe:
    """Return a sequential study that starts from a pretraining: 16 arms a seed."""
    design = quarter()
    base = TrialSettings(
        study=name,
        config=size.path,
        plan=Plan.of(REST),
        data=DataSettings(train=(STUDY_DATA.root,), val=STUDY_DATA.root, num_loader_workers=LOADERS),
        train=TrainSettings(
            steps=80,
            batch_size=size.batch,
            warmup_steps=20,
            lr_scale=size.rate,
            checkpoint_every=40,
            amp=True,
        ),
        init_checkpoint=weights_of(pretraining),
        conditions=CONDITIONS,
        device="cuda",
        overrides=(KEPT_STATISTICS, *shared_overrides(size)),
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
