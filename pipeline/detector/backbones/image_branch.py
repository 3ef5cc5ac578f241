"""The image branch of ``CmtDetector``: normalised images to the feature maps of all cameras."""

from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from pipeline.detector.acceleration.cuda_graph import Graphs, replayed
from pipeline.detector.acceleration.memory_format import maps_channels_last
from pipeline.detector.backbones.frozen import run_part
from pipeline.detector.backbones.image import GridMask
from pipeline.detector.backbones.lidar_branch import BranchError

NO_IMAGE = (0, 0)
"""``image_size`` of a model without an image branch."""


class ImageBranch(nn.Module):
    """Mixin of a detector that holds the modules of its image branch.

    Attributes:
        image_size: height and width in pixels of the images.
        has_images: whether there is a branch.
        graphs: CUDA graphs through which detection runs; None: kernel by kernel.
        pts_bbox_head: holds the graphs of training.
    """

    graphs: Graphs | None
    pts_bbox_head: Any

    def build_image_branch(
        self,
        image_size: tuple[int, int] | None,
        backbone: dict[str, Any] | None,
        neck: dict[str, Any] | None,
        use_grid_mask: bool,
    ) -> None:
        """Build the branch that the config gives; arguments as for ``CmtDetector``.

        Raises:
            BranchError: a part of the branch is missing.
        """
        parts = {"image_size": image_size, "img_backbone": backbone, "img_neck": neck}
        missing = [name for name, part in parts.items() if part is None]
        if missing and len(missing) < len(parts):
            raise BranchError(f"model: expected all of {', '.join(parts)}; {', '.join(missing)} is missing")
        height, width = image_size or NO_IMAGE
        self.image_size = (int(height), int(width))
        self.has_images = not missing
        self.grid_mask = GridMask() if use_grid_mask else None
        self.img_backbone: Any = None if backbone is None else MODELS.build(backbone)
        self.img_neck: Any = None if neck is None else MODELS.build(neck)

    def image_features(self, images: Tensor) -> Tensor:
        """Run the branch on normalised images (B, V, 3, H, W).

        Returns:
            (B * V, C, h', w'). Without a branch it is empty.
        """
        images = images.flatten(0, 1)
        if not self.has_images:
            return images.new_zeros(len(images), 0, 0, 0)
        if self.grid_mask is not None:
            images = self.grid_mask(images)
        return replayed(self, "images", self._image_maps, (images,))[0]

    def _image_maps(self, images: Tensor) -> tuple[Tensor]:
        images, graphs = maps_channels_last(images), self.pts_bbox_head.train_graphs
        if graphs is None or not (self.training and torch.is_grad_enabled()):
            return (run_part(self.img_neck, run_part(self.img_backbone, images))[0],)
        return (self.img_neck(graphs.run_frozen(self.img_backbone, images))[0],)
