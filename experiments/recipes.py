"""Recipes: the studies that ship with the project, each a question with its trials and its rule.

A recipe is a frozen value. Its digest covers every trial's settings and the rule, is fixed before
the first trial runs, and is copied into every row.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product

from experiments.rule import Rule
from pipeline.plan import Plan
from pipeline.settings import DataSettings, TrainSettings, TrialSettings

MINI_CONFIG = "experiments/configs/cmt_aqr_pillar_mini.py"
MINI_CHECKPOINT = "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"
CONDITIONS = ("clean", "lidar_sector", "no_lidar", "one_camera", "no_cameras")
CROSS_SITES = ("decoder.0.cross", "decoder.1.cross", "decoder.2.cross")
"""The cross-attention of each decoder layer of the mini model: the factors of its studies."""


class RecipeError(ValueError):
    """A recipe nobody knows, or one that contradicts itself."""


@dataclass(frozen=True)
class World:
    """A generated dataset that a recipe needs; made if it is absent.

    Attributes:
        root: dataset root, relative to the project root.
        seed: decides everything in it.
        frames_per_scene: key frames per scene.
        scenes: number of scenes of each devkit split.
    """

    root: str
    seed: int
    frames_per_scene: int = 20
    scenes: tuple[tuple[str, int], ...] = (("mini_train", 8), ("mini_val", 2))


@dataclass(frozen=True)
class Recipe:
    """One study.

    Attributes:
        name: name of the study, of its folder and of its recipe.
        question: what it answers, one sentence.
        cost: what it costs, in words for people.
        trials: the trials, in the order they start.
        factors: sites whose bias the trials vary; empty if nothing is compared.
        rule: turns rows into verdicts; None if nothing is compared.
        worlds: generated datasets it needs.
        concurrent_trials: trials that run at once on one machine.
    """

    name: str
    question: str
    cost: str
    trials: tuple[TrialSettings, ...]
    factors: tuple[str, ...] = ()
    rule: Rule | None = None
    worlds: tuple[World, ...] = ()
    concurrent_trials: int = 1

    def __post_init__(self) -> None:
        """Refuse two trials with the same settings: they would share a folder."""
        names = [self.trial_name(settings) for settings in self.trials]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(f"recipe {self.name}: trial {twice[0]} is in it twice")

    @property
    def digest(self) -> str:
        """Twelve hex digits that name all trials, their data and the rule."""
        plain = {
            "trials": [settings.digest for settings in self.trials],
            "worlds": [asdict(world) for world in self.worlds],
            "rule": self.rule.to_dict() if self.rule else None,
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

    def trial_name(self, settings: TrialSettings) -> str:
        """Return a readable name: biases of the factors, seed, digest of the settings."""
        biases = [settings.plan[site].bias for site in self.factors] or ["trial"]
        return f"{'-'.join(biases)}_s{settings.seed}_{settings.digest}"

    def named_trials(self) -> dict[str, TrialSettings]:
        """Return trial name -> settings, in order."""
        return {self.trial_name(settings): settings for settings in self.trials}


def cross_plan(biases: tuple[str, ...], impl: str = "sdpa_math") -> Plan:
    """Return the mini model's plan with the given bias kinds on its cross-attentions.

    The rest stays as published: query weights under the local mask, self-attention without bias.
    """
    choices = {"aqr.0.cross": f"local/{impl}", "decoder.*.self": f"none/{impl}"}
    choices |= {site: f"{bias}/{impl}" for site, bias in zip(CROSS_SITES, biases, strict=True)}
    return Plan.of(choices)


def factorial(kinds: tuple[str, ...] = ("none", "window")) -> tuple[Plan, ...]:
    """Return the plans of the full factorial of bias kinds over the cross-attentions."""
    return tuple(cross_plan(biases) for biases in product(kinds, repeat=len(CROSS_SITES)))


def demo() -> Recipe:
    """2^3 factorial of the window bias over the decoder's layers, two seeds, fine-tuned from a checkpoint."""
    mini = World("data/mini", seed=7)
    base = TrialSettings(
        study="demo",
        config=MINI_CONFIG,
        plan=cross_plan(("none",) * 3),
        data=DataSettings(train=(mini.root,), val=mini.root),
        # 80 of the 160 frames, gently: at half the config's rate 40 steps lose 2 points of mAP
        train=TrainSettings(steps=40, batch_size=2, warmup_steps=10, lr_scale=0.2),
        init=MINI_CHECKPOINT,
        conditions=CONDITIONS,
        threads=1,  # two trials at once on two cores: start-up overlaps, and no thread waits for another
    )
    trials = tuple(replace(base, plan=plan, seed=seed) for seed in (0, 1) for plan in factorial())
    return Recipe(
        name="demo",
        question="In which decoder layers does the window bias of the cross-attention pay off?",
        cost="16 fine-tunings of the mini model, about 15 minutes on 2 CPU cores",
        trials=trials,
        factors=CROSS_SITES,
        rule=Rule(sites=CROSS_SITES, seeds=(0, 1)),
        worlds=(mini,),
        concurrent_trials=2,
    )


def _pretraining(name: str, train: TrainSettings, init: str = "") -> Recipe:
    """Train everything on worlds that ``demo`` never sees.

    Each step trains one of the eight plans that ``demo`` compares, so that no arm starts with an
    advantage. The mini's own multipliers freeze the branches; here nothing is frozen.
    """
    plain, *others = factorial()
    worlds = tuple(
        World(f"data/pretrain_{seed}", seed, scenes=(("mini_train", 8), ("mini_val", 1)))
        for seed in range(101, 113)
    )
    settings = TrialSettings(
        study=name,
        config=MINI_CONFIG,
        plan=plain,
        mix=tuple(others),
        data=DataSettings(train=tuple(world.root for world in worlds), val=worlds[0].root, loader_workers=6),
        train=train,
        init=init,
        conditions=CONDITIONS,
        device="cuda",
        overrides=(("optim_wrapper.paramwise_cfg.custom_keys", "{}"),),
    )
    return Recipe(
        name=name,
        question="Which weights does the demo start from?",
        cost="about 7 minutes on one H200 and 8 cores",
        trials=(settings,),
        worlds=worlds,
    )


def pretrain() -> Recipe:
    """Make the shipped checkpoint, first stage: from scratch, CMT's masked-modal training."""
    train = TrainSettings(
        steps=1665,
        batch_size=16,
        warmup_steps=300,
        lr_scale=2.0,
        mask_cameras=0.25,
        mask_lidar=0.25,
        checkpoint_every=500,
        log_every=50,
    )
    return _pretraining("pretrain", train)


def pretrain_cameras() -> Recipe:
    """Make the shipped checkpoint, second stage: half of the samples without points.

    After the first stage the detector looks at the points alone: they give positions at once, and with
    them most classes. Taking them away teaches it to look at the images; what it learns there it then
    uses with both sensors, too.
    """
    train = TrainSettings(
        steps=1765,
        batch_size=32,
        warmup_steps=300,
        lr_scale=2.0,
        mask_cameras=0.1,
        mask_lidar=0.5,
        checkpoint_every=1000,
        log_every=25,
    )
    (first,) = pretrain().named_trials()
    return _pretraining("pretrain_cameras", train, init=f"runs/pretrain/trials/{first}/weights.safetensors")


def smoke() -> Recipe:
    """Two trials of a few steps on four scenes of two frames: every part runs, nothing is learned."""
    tiny = World("data/smoke", seed=3, frames_per_scene=2, scenes=(("mini_train", 2), ("mini_val", 2)))
    base = TrialSettings(
        study="smoke",
        config=MINI_CONFIG,
        plan=cross_plan(("none",) * 3),
        data=DataSettings(train=(tiny.root,), val=tiny.root),
        train=TrainSettings(steps=3, batch_size=1, warmup_steps=1, checkpoint_every=2, log_every=1),
        threads=1,
    )
    plans = [cross_plan(("none",) * 3), cross_plan(("window", "none", "none"))]
    return Recipe(
        name="smoke",
        question="Does every part run?",
        cost="two trials of 3 steps, under a minute",
        trials=tuple(replace(base, plan=plan) for plan in plans),
        factors=CROSS_SITES[:1],
        rule=Rule(sites=CROSS_SITES[:1], seeds=(0,)),
        worlds=(tiny,),
        concurrent_trials=2,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "pretrain": pretrain,
    "pretrain_cameras": pretrain_cameras,
    "smoke": smoke,
}
"""Name -> the function that makes it."""


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        RecipeError: there is no such recipe.
    """
    if name not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
