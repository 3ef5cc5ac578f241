"""Configs of mmcv 1.x, and sections of a config that would change a training and are not followed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.bad_inputs.place import Bad, Place, Words

OLD = """
optimizer = dict(type="AdamW", lr=1e-4)
data = dict(samples_per_gpu=2)
model = dict(pts_bbox_head=dict())
"""


def of_mmcv(*words: str) -> Callable[[Place], Words]:
    return lambda place: [*words[:1], place.written("old.py", OLD), *words[1:]]


def trains(text: str) -> Callable[[Place], Callable[[], Any]]:
    """A trial of the shipped smoke study with another config, checked as before its training."""

    def make(place: Place) -> Callable[[], Any]:
        from experiments.recipes.mini import smoke
        from pipeline.training.preflight import check_config

        config = place.config(text)
        return lambda: check_config(replace(smoke().trials[0], config=config, overrides=()))

    return make


def config(text: str) -> Callable[[Place], Words]:
    return lambda place: ["plan", place.config(text)]


CONFIGS = [
    Bad(
        "config",
        "optimizer, data",
        "mmcv 1.x, for `plan`",
        of_mmcv("plan"),
        "old.py: this is a config of mmcv 1.x, which mmengine replaced: nothing here reads its sections "
        "optimizer, data; `biaswise lint OLD.py --fix --out NEW.py` writes the config of today that builds "
        "the same model and trains it with the same schedule",
    ),
    Bad(
        "lint",
        "--fix",
        "a config of mmcv 1.x, no --out",
        of_mmcv("lint", "--fix"),
        "…/old.py: is a config of mmcv 1.x; name the new file: --fix --out NEW.py",
    ),
    Bad(
        "lint",
        "--out",
        "a config of today",
        lambda place: ["lint", place.config(""), "--fix", "--out", str(place.tmp / "new.py")],
        "…/mine.py: is a config of today; --out is for configs of mmcv 1.x, and --fix alone mends it",
    ),
    Bad(
        "lint",
        "--out",
        "without --fix",
        of_mmcv("lint", "--out", "new.py"),
        "--out names the file that --fix writes; give both",
    ),
    Bad(
        "lint",
        "--out",
        "the old file",
        lambda place: ["lint", place.written("old.py", OLD), "--fix", "--out", str(place.tmp / "old.py")],
        "…/old.py: is the config of mmcv 1.x itself; name another file with --out",
    ),
    Bad(
        "config",
        "optim_wrapper.loss_scale",
        "dynamic",
        config('optim_wrapper = dict(loss_scale="dynamic")'),
        "optim_wrapper.loss_scale: training is bfloat16, whose range needs no loss scale; remove it, and set "
        "type='AmpOptimWrapper' and dtype='bfloat16'",
    ),
    Bad(
        "config",
        "optim_wrapper.accumulative_counts",
        "0",
        config("optim_wrapper = dict(accumulative_counts=0)"),
        "optim_wrapper.accumulative_counts: expected how many batches make a step, 1 or more, got 0",
    ),
    Bad(
        "config",
        "param_scheduler",
        "MmcvLR with an unknown policy",
        trains('param_scheduler = dict(type="MmcvLR", config=dict(policy="Plateau"), end=9, by_epoch=False)'),
        "param_scheduler[0], MmcvLR: policy='Plateau' is not computed; expected one of fixed, step, exp, inv, "
        "poly, CosineAnnealing, FlatCosineAnnealing, LinearAnnealing, CosineRestart, cyclic, OneCycle",
    ),
    Bad(
        "config",
        "resume",
        "True",
        trains("resume = True"),
        "…/mine.py: resume: resume=True would go on from a checkpoint of another training; a trial goes on "
        "only from its own; remove it; load_from names weights to start from",
    ),
    Bad(
        "config",
        "custom_hooks",
        "a hook that would change the training",
        trains('custom_hooks = [dict(type="MyHook")]'),
        "…/mine.py: custom_hooks.0: the hook MyHook would change the training, and this loop does not run it; "
        "remove it; known are …",
    ),
    Bad(
        "config",
        "auto_scale_lr.enable",
        "True",
        trains("auto_scale_lr = dict(enable=True, base_batch_size=16)"),
        "…/mine.py: auto_scale_lr.enable: auto_scale_lr would scale the learning rate with the batch, and "
        "nothing here does; remove it, and give the rate for your batch in optim_wrapper.optimizer.lr",
    ),
    Bad(
        "config",
        "data_preprocessor",
        "beside the model",
        trains('data_preprocessor = dict(type="Det3DDataPreprocessor")'),
        "…/mine.py: data_preprocessor: the Runner gives data_preprocessor to a model that has none, and "
        "nothing here does so; give it to the model: model.data_preprocessor",
    ),
]
