"""What a study takes, before anything has run: trials, hours, GPU hours, GB; computed from step times.

A trial is its start, its steps, and its evaluation under every condition. A step takes as long as its samples
take to load, if that is longer; every loader process is taken to have a core. What opening the tables of
nuScenes takes is not in it. Where nothing was measured for a config and a device, nothing is computed.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache

from experiments.recipes.recipe import Recipe
from pipeline.config.settings import TrialSettings
from pipeline.storage.paths import ROOT, resolve_path

FRAMES = {"train": 28_130, "val": 6_019, "mini_train": 323, "mini_val": 81}
"""Key frames of the splits of nuScenes."""

CONFIGS = "experiments/configs"

CONFIRMED = 3
"""Plans that a confirmation trains with each fresh seed."""


@dataclass(frozen=True)
class Speed:
    """How fast a model of one size is.

    Attributes:
        config: part of the config's name.
        device: ``cpu`` or ``cuda``.
        start_s: start of a trial's processes, seconds.
        step_s: a training step, seconds, at ``batch`` samples a worker; with more, in proportion.
        batch: see there.
        load_s: loading and augmenting a sample in a loader process, seconds.
        frame_s: a detection while a trial evaluates, seconds.
        trial_gb: checkpoints and weights that a trial keeps.
        source: where it was measured.
    """

    config: str
    device: str
    start_s: float
    step_s: float
    batch: int
    load_s: float
    frame_s: float
    trial_gb: float
    source: str


COMPUTED = """Computed from steps on one H200 and one CPU core, from the first look at verdicts to the last;
`biaswise study power` has more. Your own study: `biaswise study new my_study.py`."""
"""What a list of costs says below it."""

H200 = "one H200 (docs/models.md) and one core for each loader (docs/data.md)"
SPEEDS = (
    Speed("voxel0100_r50_800x320", "cuda", 35.0, 0.0536, 4, 0.2, 0.043, 0.44, H200),
    Speed("voxel0075_vov_1600x640", "cuda", 35.0, 0.0728, 2, 0.3, 0.055, 0.61, H200),
    Speed("pillar_mini", "cuda", 25.0, 0.06, 4, 0.01, 0.02, 0.023, H200),
    Speed("pillar_mini", "cpu", 25.0, 0.26, 2, 0.01, 0.06, 0.023, "one CPU core (docs/studies/demo)"),
)
"""Detections of the two large models are those without CUDA graphs, as a trial evaluates."""


@dataclass(frozen=True)
class Cost:
    """What a study takes, from its first look to its last; the numbers of a study with one look are equal.

    Attributes:
        trials: numbers of trials, confirmation included.
        hours: by the clock.
        gpu_hours: of its trials, which the stopwatch is not; 0 on a CPU.
        gb: disk.
        gpus: GPUs that are busy at once.
        source: of the step time.
    """

    trials: tuple[int, int]
    hours: tuple[float, float]
    gpu_hours: tuple[float, float]
    gb: tuple[float, float]
    gpus: int
    source: str

    def __str__(self) -> str:
        """Return the cost in a phrase."""
        spent = [f"{span(self.trials)} trials", f"{span(self.hours)} h"]
        if self.gpus:
            spent[-1] += f" on {self.gpus} GPU{'s' if self.gpus > 1 else ''}"
            spent.append(f"{span(self.gpu_hours)} GPU hours")
        return ", ".join([*spent, f"{span(self.gb)} GB"])


def speed_of(settings: TrialSettings) -> Speed | None:
    """Return what was measured for a trial's model and device; None if nothing was.

    A config of the user's own is as fast as a shipped one whose branches, sizes and frozen parts it has.
    Models whose frozen parts train, too, were not measured.
    """
    if any("custom_keys" in key for key, _ in settings.overrides):
        return None
    speeds = [speed for speed in SPEEDS if speed.device == settings.device]
    if settings.config.startswith(CONFIGS):
        return next((speed for speed in speeds if speed.config in settings.config), None)
    if not resolve_path(settings.config).is_file():  # it is on the cluster alone
        return None
    own = _what_costs(settings.config)
    for speed in speeds:
        shipped = min((ROOT / CONFIGS).glob(f"cmt_aqr_{speed.config}*.py"))
        if own == _what_costs(f"{CONFIGS}/{shipped.name}"):
            return replace(speed, source=f"{speed.source}, as for {shipped.stem}")
    return None


@lru_cache(maxsize=64)  # a config takes a second to read
def _what_costs(config: str) -> str:
    """Return the values of a config that decide how long a step takes, as JSON: a tuple is a list in it."""
    from pipeline.detector.build import load_config  # imports mmdet3d: seconds
    from pipeline.detector.inspection.sites import plain

    cfg = plain(load_config(config).to_dict())
    model = cfg["model"]
    head, image = model["pts_bbox_head"], model.get("img_backbone") or {}
    decoder = head["transformer"]["decoder"]
    multipliers = (cfg["optim_wrapper"].get("paramwise_cfg") or {}).get("custom_keys") or {}
    return json.dumps(
        {
            "images": (
                *map(image.get, ("type", "depth", "base_channels", "spec_name")),
                model.get("image_size"),
            ),
            "voxels": (model.get("pts_voxel_layer") or {}).get("voxel_size"),
            "grid": (model.get("pts_middle_encoder") or {}).get("sparse_shape"),
            "pillars": (model.get("pts_branch") or {}).get("grid_shape"),
            "head": (head["hidden_dim"], head["num_query"], decoder.get("num_layers")),
            "frozen": sorted(part for part, given in multipliers.items() if given.get("lr_mult") == 0),
        }
    )


def trial_seconds(settings: TrialSettings, speed: Speed, frames: int) -> float:
    """Return how long a trial takes, seconds.

    Args:
        settings: the trial, which says its steps.
        speed: of its model.
        frames: to evaluate on, under each condition.
    """
    train, loaders = settings.train, settings.data.num_loader_workers
    step, loading = speed.step_s * max(1.0, train.batch_size / speed.batch), train.batch_size * speed.load_s
    step = max(step, loading / loaders) if loaders else step + loading
    detections = frames * len(settings.conditions) / settings.num_workers
    return speed.start_s + (train.steps or 0) * step + detections * speed.frame_s


def cost_of(recipe: Recipe) -> Cost | None:
    """Return what a study takes; None if nothing was measured that says so."""
    first = recipe.trials[0]
    speed = speed_of(first)
    frames = evaluated_frames(recipe)
    if speed is None or frames is None or first.train.steps is None:
        return None
    seconds = trial_seconds(first, speed, frames)
    again = CONFIRMED * len(recipe.confirmation_seeds)
    fewest = len(recipe.trials)
    if recipe.design and recipe.rule and recipe.rule.interim_analyses:
        fewest = recipe.rule.interim_analyses[0] * len(recipe.design.arms)
    trials = (fewest + again, len(recipe.trials) + again)
    at_once = recipe.concurrent_trials or 1
    stopwatch = recipe.rule.stopwatch_s if recipe.rule and recipe.rule.priced_by == "stopwatch" else 0.0
    gpus = first.num_workers if first.device == "cuda" else 0
    few, most = ((number * seconds / at_once + stopwatch) / 3600 for number in trials)
    return Cost(
        trials,
        (few, most),
        (trials[0] * seconds * gpus / 3600, trials[1] * seconds * gpus / 3600),
        (trials[0] * speed.trial_gb, trials[1] * speed.trial_gb),
        gpus * at_once,
        speed.source,
    )


def evaluated_frames(recipe: Recipe) -> int | None:
    """Return how many frames a trial evaluates on; None if the split is not one of nuScenes'."""
    data = recipe.trials[0].data
    for made in recipe.datasets:
        if made.root == data.val:
            return made.frames_per_scene * dict(made.scenes).get(data.val_split, 0)
    root = resolve_path(data.val)
    if (root / data.nuscenes_version / "scene.json").is_file():
        from pipeline.data.formats.nuscenes_tables import count_frames  # imports the devkit's splits

        return count_frames(root, data.nuscenes_version, data.val_split)
    return FRAMES.get(data.val_split)


def hours_of_trial(recipe: Recipe) -> tuple[float, str, str] | None:
    """Return what a trial takes, its unit, and a sentence on where that is from; None if nothing says it."""
    first, speed, frames = recipe.trials[0], speed_of(recipe.trials[0]), evaluated_frames(recipe)
    if speed is None or frames is None or first.train.steps is None:
        return None
    on_gpus = first.device == "cuda"
    unit = "GPU hours" if on_gpus else "trial hours"
    hours = trial_seconds(first, speed, frames) / 3600 * (first.num_workers if on_gpus else 1)
    return hours, unit, f"{unit[0].upper()}{unit[1:]}: computed, as no trial has run; from {speed.source}."


def takes(recipe: Recipe) -> str:
    """Return what a study takes, a phrase: computed where it can be, and what its recipe says."""
    return ", ".join(filter(None, (str(cost_of(recipe) or ""), recipe.cost)))


def span(ends: tuple[float, float]) -> str:
    """Spell two numbers with two digits; one of them if they are equal."""
    low, high = (f"{end:.2g}" if end < 100 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"
