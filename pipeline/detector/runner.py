"""Support for mmengine's own Runner (``tools/train.py``).

A config names this module in ``custom_imports``. Then mmdet3d's registries build its model, its
train_pipeline and its optimiser. Each transform applies a step of ``pipeline.data`` to mmdet3d's ``results``
dicts, so that a frame is augmented alike in both training loops.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from pipeline.data.augmentation import pipeline_steps
from pipeline.data.formats.decoding import lidar2img
from pipeline.data.sample import Sample
from pipeline.detector import build  # noqa: F401  registers the model's classes
from pipeline.detector.openmmlab.data_samples import BOX_COLUMNS, GRAVITY
from pipeline.detector.openmmlab.optimizer import build_optimizer, freeze


def to_sample(results: dict[str, Any]) -> Sample:
    """Return the sample of mmdet3d's dict of one frame, as its loaders or ``from_sample`` made it."""
    if "lidar2img" in results:
        matrices = np.asarray(results["lidar2img"], np.float64)
    else:
        inside = np.array([np.asarray(made)[:3, :3] for made in results["cam2img"]], np.float64)
        matrices = lidar2img(inside, np.asarray(results["lidar2cam"], np.float64))
    ground_truth = results.get("gt_bboxes_3d")
    boxes = np.zeros((0, BOX_COLUMNS), np.float32)
    if ground_truth is not None and len(ground_truth):
        boxes = torch.cat([ground_truth.gravity_center, ground_truth.tensor[:, 3:]], 1).numpy()
    return Sample(
        token=str(results.get("token", "")),
        scene="",
        images=np.stack([np.asarray(image, np.uint8) for image in results["img"]]),
        points=results["points"].tensor.numpy(),
        lidar2img=matrices,
        boxes=boxes,
        labels=np.asarray(results.get("gt_labels_3d", ()), np.int64),
        lidar2ego=np.eye(4),
        ego2global=np.asarray(results.get("ego2global", np.eye(4)), np.float64),
    )


def from_sample(sample: Sample, results: dict[str, Any]) -> dict[str, Any]:
    """Return ``results`` with the fields of a sample.

    ``cam2img`` and ``lidar2cam`` are removed, because a step changes only their product ``lidar2img``.
    """
    shape = sample.images.shape[1:3]
    made = {key: value for key, value in results.items() if key not in ("cam2img", "lidar2cam")}
    made |= {
        "img": list(sample.images),
        "img_shape": shape,
        "pad_shape": shape,
        "lidar2img": sample.lidar2img,
        "points": results["points"].new_point(torch.from_numpy(sample.points)),
    }
    if "gt_bboxes_3d" in results:
        boxes = torch.from_numpy(sample.boxes)
        made["gt_bboxes_3d"] = LiDARInstance3DBoxes(boxes, box_dim=BOX_COLUMNS, origin=GRAVITY)
        made["gt_labels_3d"] = sample.labels
    return made


def apply_step(step: pipeline_steps.Step, results: dict[str, Any]) -> dict[str, Any]:
    """Apply a step. Its generator is seeded from numpy's global one, which mmengine seeds per worker."""
    rng = np.random.default_rng(np.random.randint(2**31, size=4))
    return from_sample(step(to_sample(results), rng), results)


def _register(step: Any) -> None:
    """Register a step in mmdet3d under its own name, with its fields as config keys."""

    class Transform(BaseTransform):
        def __init__(self, **keys: Any) -> None:
            self.step = step(**keys)

        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            return apply_step(self.step, results)

    Transform.__name__ = Transform.__qualname__ = step.__name__
    Transform.__doc__ = f"{step.__doc__}\nKeys: {', '.join(field.name for field in fields(step))}."
    TRANSFORMS.register_module(module=Transform)


for _step in (
    pipeline_steps.ModalMask3D,
    pipeline_steps.GlobalRotScaleTransAll,
    pipeline_steps.CustomRandomFlip3D,
    pipeline_steps.ResizeCropFlipImage,
):
    _register(_step)


@TRANSFORMS.register_module(name="UnifiedObjectSample")
def paste_objects(**keys: Any) -> BaseTransform:
    """Return ``UnifiedObjectSample`` as a transform that DisableObjectSampleHook can disable."""
    from pipeline.detector.paste_objects import PasteObjects  # loads numba, which `biaswise lint` need not

    return PasteObjects(apply_step, **keys)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CmtOptimWrapperConstructor:
    """Freeze parameters with multiplier 0, and make one group per pair of multipliers, as our own loop does.

    mmengine's default keeps parameters with multiplier 0 in training mode. Their batch norms would follow the
    batches, and the losses would differ from ours.

    Args:
        optim_wrapper_cfg: ``type``, ``optimizer``, ``clip_grad``.
        paramwise_cfg: ``custom_keys``.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        self._wrapper = dict(optim_wrapper_cfg)
        self._paramwise = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Freeze parameters, and return the wrapped optimiser of the others."""
        model = getattr(model, "module", model)
        whole = {**self._wrapper, "paramwise_cfg": self._paramwise}
        freeze(model, whole)
        made = {key: value for key, value in self._wrapper.items() if key != "constructor"}
        return OPTIM_WRAPPERS.build({**made, "optimizer": build_optimizer(model, whole)})
