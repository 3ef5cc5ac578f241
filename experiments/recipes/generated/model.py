"""The two full-size models as generated frames train them: their sizes, and what their configs change."""

import json
from dataclasses import dataclass
from typing import Any

SWEEPS = 3
"""Earlier scans that are read of a frame. nuScenes' nine make 84,000 voxels of 0.1 m of a generated frame,
these 41,000. The trained sparse encoder runs in single precision."""


@dataclass(frozen=True)
class Size:
    """One of the two configs of the mission.

    Attributes:
        config: its name without what both have in common.
        images: (height, width) that the model takes, pixels.
        zoom: range of the factor by which training resizes an image, as the config has it.
        batch: frames of a step of the study, as published.
        rate: factor on the config's rate in the study.
        reach: half the side of the range in m.
        normalises: overrides by which the image backbone learns from scratch.
    """

    config: str
    images: tuple[int, int]
    zoom: tuple[float, float]
    batch: int
    rate: float
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
    0.5,  # 7e-5
    51.2,  # published: 54, of which 1024 voxels reach 48.4; a cell lies up to 5.6 m from where it says
    (_COUNTS, ("model.img_backbone.with_cp", "false")),
)
VOV = Size(
    "voxel0075_vov_1600x640",
    (640, 1600),
    (0.94, 1.25),
    2,
    0.25,  # 5e-5: half as many frames in a step, so 7e-5 over the root of two
    54.0,
    (_COUNTS,),
)

NECK_NORMS = (("model.img_neck.norm_cfg", '{"type": "BN"}'),)
"""Without them image features grow in training, and fresh attention sees the strongest features alone."""


def shared_overrides(size: Size) -> tuple[tuple[str, str], ...]:
    """Return what a config changes for generated frames: how they are read and augmented, range and neck.

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
        *NECK_NORMS,
        ("train_dataloader.dataset", json.dumps(train)),
        ("val_dataloader.dataset.pipeline", json.dumps(load)),
        ("model.use_grid_mask", "false"),
        ("model.pts_voxel_layer.point_cloud_range", json.dumps(limits)),
        ("model.pts_bbox_head.bbox_coder.pc_range", json.dumps(limits)),
    )
