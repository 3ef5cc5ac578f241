"""Six images and a point cloud in, boxes out; a standard mmdet3d model.

It builds from a config through mmdet3d's ``MODELS`` and trains under our loop as under mmengine's Runner.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from operators import objections
from pipeline.config.plan import Choice, Plan, PlanError
from pipeline.detector.acceleration.cuda_graph import Graphs, replayed
from pipeline.detector.backbones.image import GridMask
from pipeline.detector.backbones.sparse_conv import build_sparse_encoder
from pipeline.detector.backbones.voxelization import VoxelLayer
from pipeline.detector.head.losses import HeadOutput
from pipeline.detector.openmmlab.data_samples import read_meta
from pipeline.detector.transformer.site_attention import training_requests
from pipeline.metrics.device_measure import DeviceMeasure


class BranchError(ValueError):
    """A model whose LiDAR branch is given twice, in part, or not at all."""


@MODELS.register_module()
class CmtDetector(Base3DDetector):
    """CMT with AQR: image branch, LiDAR branch, and the head that fuses them.

    Its LiDAR branch is either CMT's own, whose five parts stand in the config as they do there
    (``pts_voxel_layer`` to ``pts_neck``; needs spconv), or one module ``pts_branch`` (``PillarBranch``).

    Args:
        image_size: height and width in pixels of the images it is made for; the loader brings them there.
        img_backbone, img_neck: mmdet modules; only the neck's first level is used, as in CMT.
        pts_bbox_head: ``CmtAqrHead``, also called ``CmtHead``.
        pts_branch: points to one BEV map.
        pts_voxel_layer: arguments of ``VoxelLayer``; the grid's shape is the middle encoder's.
        pts_voxel_encoder, pts_middle_encoder, pts_backbone, pts_neck: mmdet3d modules.
        use_grid_mask: hide a grid of rectangles of the images in training.
        train_cfg: ``dict(pts=...)``, the head's ``train_cfg``, where CMT's configs have it.
        data_preprocessor: ``Det3DDataPreprocessor``; voxelisation is the LiDAR branch's own.
        init_cfg: see mmengine.

    Raises:
        BranchError: both LiDAR branches, or an incomplete one.
        pipeline.detector.backbones.sparse_conv.SparseConvError: CMT's own branch without spconv.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        img_backbone: dict[str, Any],
        img_neck: dict[str, Any],
        pts_bbox_head: dict[str, Any],
        pts_branch: dict[str, Any] | None = None,
        pts_voxel_layer: dict[str, Any] | None = None,
        pts_voxel_encoder: dict[str, Any] | None = None,
        pts_middle_encoder: dict[str, Any] | None = None,
        pts_backbone: dict[str, Any] | None = None,
        pts_neck: dict[str, Any] | None = None,
        use_grid_mask: bool = False,
        train_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.grid_mask = GridMask() if use_grid_mask else None
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        parts = {
            "pts_voxel_layer": pts_voxel_layer,
            "pts_voxel_encoder": pts_voxel_encoder,
            "pts_middle_encoder": pts_middle_encoder,
            "pts_backbone": pts_backbone,
            "pts_neck": pts_neck,
        }
        self.pts_branch = MODELS.build(pts_branch) if pts_branch is not None else None
        self._build_voxel_branch({name: cfg for name, cfg in parts.items() if cfg is not None}, list(parts))
        self.pts_bbox_head = MODELS.build(_with_train_cfg(pts_bbox_head, train_cfg))
        self._side: Any = None  # the stream of the LiDAR branch, made where the GPU is
        self.graphs: Graphs | None = None  # see deploy.use_graphs

    def _build_voxel_branch(self, parts: dict[str, dict[str, Any]], names: list[str]) -> None:
        """Build CMT's own LiDAR branch, if that is the one of the config."""
        missing = [name for name in names if name not in parts]
        if bool(parts) == (self.pts_branch is not None) or (parts and missing):
            got = [*(["pts_branch"] if self.pts_branch is not None else []), *parts]
            raise BranchError(
                f"model: expected either pts_branch or all of {', '.join(names)}; "
                f"got {', '.join(got) or 'neither'}"
            )
        if not parts:
            return
        middle = parts["pts_middle_encoder"]
        self.pts_voxel_layer = VoxelLayer(**parts["pts_voxel_layer"], sparse_shape=middle["sparse_shape"])
        self.pts_voxel_encoder = MODELS.build(parts["pts_voxel_encoder"])
        self.pts_middle_encoder = build_sparse_encoder(middle)
        self.pts_backbone = MODELS.build(parts["pts_backbone"])
        self.pts_neck = MODELS.build(parts["pts_neck"])

    @property
    def sites(self) -> list[str]:
        """Paths of all attention sites, in the order of computation."""
        return list(self.pts_bbox_head.sites)

    @property
    def plan(self) -> Plan:
        """What every site does now: a resolved plan."""
        return Plan(tuple((site, module.choice) for site, module in self.pts_bbox_head.sites.items()))

    @property
    def bias_scale(self) -> nn.Parameter | None:
        """The learned scale of the attention bias; None without a bias generator."""
        generator = self.pts_bbox_head.bias_generator
        return None if generator is None else generator.bias_scale

    def bias_numbers(self) -> list[DeviceMeasure]:
        """Return how the scale of the bias learns, as copies on the device.

        ``bias_scale`` (logits) and, after a backward pass that reached it, ``bias_scale_grad`` (1/logits) of
        the model: the mean over the layers if each layer has its own scale. After such a pass also
        ``bias_scale_grad`` of every biased site: what that layer by itself would do to the scale.
        ``bias_scale`` of a site only where layers have their own. Empty without a bias generator.
        """
        generator = self.pts_bbox_head.bias_generator
        if generator is None:
            return []
        scale, grad = generator.bias_scale, generator.bias_scale.grad
        measures = [DeviceMeasure("bias_scale", "logits", scale.detach().mean())]
        if grad is not None:
            measures.append(DeviceMeasure("bias_scale_grad", "1/logits", grad.mean()))
        for i, site in enumerate(self.pts_bbox_head.transformer.decoder.crosses):
            if site.choice.bias == "none":
                continue
            if scale.numel() > 1:
                own = scale.detach()[i].clone()
                measures.append(DeviceMeasure("bias_scale", "logits", own, site.site))
            if grad is not None and generator.slopes is not None:
                slope = generator.slopes[i]
                measures.append(DeviceMeasure("bias_scale_grad", "1/logits", slope, site.site))
        return measures

    @property
    def point_range(self) -> list[float]:
        """x, y, z minima and maxima in m of what is detected."""
        return [float(value) for value in self.pts_bbox_head.point_range.tolist()]

    def apply_plan(self, plan: Plan, device: str | None = None, dtype: str = "float32") -> None:
        """Put a plan into effect; either the whole of it or, if anything objects, nothing.

        Args:
            plan: resolved or not.
            device: ``cpu`` or ``cuda``, where the model will run; None: where it is now.
            dtype: of the attention inputs, such as ``bfloat16`` under autocast.

        Raises:
            PlanError: the plan does not fit the sites, or a site's implementation cannot serve its bias;
                lists every objection.
        """
        resolved = plan.resolve(self.sites)
        device = device or next(self.parameters()).device.type
        found = [
            f"{site}: {choice} cannot run: {objection}"
            for site, choice in resolved.choices
            for objection in self._objections(site, choice, device, dtype)
        ]
        if found:
            raise PlanError("; ".join(found))
        for site, choice in resolved.choices:
            self.pts_bbox_head.sites[site].choice = choice

    def _objections(self, site: str, choice: Choice, device: str, dtype: str) -> list[str]:
        """List why ``site`` cannot do what ``choice`` says."""
        head, module = self.pts_bbox_head, self.pts_bbox_head.sites[site]
        if choice.bias not in module.kinds:
            return [f"the site takes {', '.join(module.kinds)}"]
        if choice.bias != "none" and head.bias_generator is None:  # then there is no aqr either
            return [
                "the model has no bias generator; give the head aqr_config and bias_config, or choose 'none'"
            ]
        sizes = module.sizes(head.num_query, head.dn.scalar > 0)
        return [
            f"{objection} (asked for {request})"
            for request in training_requests(choice, sizes, device, dtype)
            for objection in objections(choice.impl, request)
        ]

    def train(self, mode: bool = True) -> "CmtDetector":
        """Switch to training; a batch norm whose parameters are frozen keeps its statistics too."""
        super().train(mode)
        for module in self.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and own and not any(p.requires_grad for p in own):
                module.training = False
        return self

    def extract_feat(self, batch_inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Run both branches.

        Args:
            batch_inputs: ``imgs`` (B, V, 3, H, W) normalised; ``points`` list of (N, 5).

        Returns:
            BEV features (B, C', h, w), and image features (B * V, C, h', w') with views of a sample in a row.
        """
        images, points = batch_inputs["imgs"], batch_inputs["points"]
        if images.is_cuda:
            return self._extract_side_by_side(images, points)
        maps = self.image_features(images)
        return self.point_features(points), maps

    def _extract_side_by_side(self, images: Tensor, points: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the branches on two streams of the GPU.

        The LiDAR branch waits for counts (of voxels, and of outputs of every sparse down-sampling): its
        kernels are small and the GPU idles between them, unless the images keep it busy.
        """
        main = torch.cuda.current_stream(images.device)
        if self._side is None:
            self._side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        self._side.wait_stream(main)
        image_maps = self.image_features(images)  # first: its launches need no wait
        with torch.cuda.stream(self._side):
            bev_maps = self.point_features(points)
        main.wait_stream(self._side)
        bev_maps.record_stream(main)  # or its memory could be used anew while the main stream reads it
        return bev_maps, image_maps

    def image_features(self, images: Tensor) -> Tensor:
        """Run the image branch on (B, V, 3, H, W) normalised images; see ``extract_feat``."""
        images = images.flatten(0, 1)
        if self.grid_mask is not None:
            images = self.grid_mask(images)
        return replayed(self, "images", self._image_maps, (images,))[0]

    def _image_maps(self, images: Tensor) -> tuple[Tensor]:
        images, graphs = _as_convolutions_like(images), self.pts_bbox_head.trained
        if graphs is None or not (self.training and torch.is_grad_enabled()):
            return (self.img_neck(self.img_backbone(images))[0],)
        return (self.img_neck(graphs.run_frozen(self.img_backbone, images))[0],)

    def point_features(self, points: list[Tensor]) -> Tensor:
        """Run the LiDAR branch on point clouds (N, C); see ``extract_feat``."""
        if self.pts_branch is not None:
            return self.pts_branch(points)
        voxels = self.pts_voxel_layer(points)
        features = self.pts_voxel_encoder(voxels.points, voxels.counts, voxels.coords)
        canvas = self._encode_sparsely(features, voxels.coords, len(points))
        return replayed(self, "bev", self._bev_maps, (canvas,))[0]

    def _bev_maps(self, canvas: Tensor) -> tuple[Tensor]:
        return (self.pts_neck(self.pts_backbone(_as_convolutions_like(canvas)))[0],)

    def _encode_sparsely(self, features: Tensor, coords: Tensor, batch: int) -> Tensor:
        """Run the middle encoder, also on one voxel (a masked point cloud) and on none (a lost one)."""
        if len(features) > 1:
            return self.pts_middle_encoder(features, coords, batch)
        if not len(features):
            # A voxel whose result is multiplied by 0: the map of an empty cloud is 0 everywhere, and DDP
            # waits for a gradient of every parameter.
            one = features.new_zeros(1, features.shape[1])
            return 0 * self._encode_sparsely(one, coords.new_zeros(1, 4), batch)
        self.pts_middle_encoder.eval()  # batch norm cannot take statistics of one value
        try:
            return self.pts_middle_encoder(features, coords, batch)
        finally:
            self.train(self.training)

    def loss(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Det3DDataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; see ``CmtAqrHead.loss``."""
        return self.pts_bbox_head.loss(*self.extract_feat(batch_inputs), batch_data_samples, **kwargs)

    def predict(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Det3DDataSample], **kwargs: Any
    ) -> list[Det3DDataSample]:
        """Detect; the boxes come as ``pred_instances_3d`` of the data samples."""
        found = self.pts_bbox_head.predict(*self.extract_feat(batch_inputs), batch_data_samples, **kwargs)
        return self.add_pred_to_datasample(list(batch_data_samples), found)

    def _forward(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Det3DDataSample], **kwargs: Any
    ) -> HeadOutput:
        """Run the network without losses or decoding (mmengine's mode ``tensor``)."""
        return self.pts_bbox_head(*self.extract_feat(batch_inputs), *read_meta(batch_data_samples), **kwargs)


def _with_train_cfg(head: dict[str, Any], train_cfg: dict[str, Any] | None) -> dict[str, Any]:
    """Hand ``model.train_cfg.pts`` to the head, as mmdet3d's detectors do."""
    if train_cfg is None:
        return head
    if set(train_cfg) != {"pts"} or "train_cfg" in head:
        raise ValueError(
            f"model.train_cfg: expected dict(pts=...) and no pts_bbox_head.train_cfg beside it, "
            f"got the keys {', '.join(train_cfg)}"
        )
    return {**head, "train_cfg": train_cfg["pts"]}


def _as_convolutions_like(maps: Tensor) -> Tensor:
    """Lay maps out for cuDNN, whose half-precision kernels want the channels last; unchanged on a CPU."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.is_cuda else maps
