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
        return self.images_after(self.images_before(images, 0), 0)

    @property
    def image_stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of each stage of the branch, in the order of computation."""
        return ((self.img_backbone,), (self.img_neck,)) if self.has_images else ()

    def images_before(self, images: Tensor, stages: int) -> Any:
        """Mask images if the detector does, and run the first stages; ``images_after`` runs the others.

        Args:
            images: (B, V, 3, H, W), normalised.
            stages: how many; with 0 the masked images (B * V, 3, H, W) are returned.
        """
        images = images.flatten(0, 1)
        if self.grid_mask is not None and self.has_images:
            images = self.grid_mask(images)
        if stages == 0:
            return images
        levels = self._image_levels(images)
        return levels if stages == 1 else run_part(self.img_neck, levels)[0]

    def images_after(self, x: Any, stages: int) -> Tensor:
        """Run the stages that ``images_before`` has not run; returns (B * V, C, h', w').

        Args:
            x: what ``images_before`` returned.
            stages: how many stages it has run.
        """
        if not self.has_images:
            return x.new_zeros(len(x), 0, 0, 0)
        if stages == 0:
            return replayed(self, "images", self._image_maps, (x,))[0]
        return run_part(self.img_neck, x)[0] if stages == 1 else x

    def _image_maps(self, images: Tensor) -> tuple[Tensor]:
        return (run_part(self.img_neck, self._image_levels(images))[0],)

    def _image_levels(self, images: Tensor) -> Any:
        images, graphs = maps_channels_last(images), self.pts_bbox_head.train_graphs
        if graphs is None or not (self.training and torch.is_grad_enabled()):
            return run_part(self.img_backbone, images)
        return graphs.run_frozen(self.img_backbone, images)
