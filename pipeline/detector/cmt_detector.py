"""The detector: from camera images and a point cloud to boxes, as a standard mmdet3d model.

It is built from a config through mmdet3d's ``MODELS``. Our training loop and mmengine's Runner both train it.
"""

from collections.abc import Sequence
from typing import Any

from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from operators import objections
from operators.grid import CAMERA, LIDAR
from pipeline.config.plan import Choice, Plan, PlanError
from pipeline.detector.acceleration.cuda_graph import Graphs
from pipeline.detector.backbones.lidar_branch import BranchError
from pipeline.detector.head.predictions import HeadOutput
from pipeline.detector.openmmlab.data_samples import read_meta
from pipeline.detector.transformer.site_attention import training_requests
from pipeline.detector.trunk import Trunk
from pipeline.metrics.device_measure import DeviceMeasure
from pipeline.runtime.collectives import RankMean


@MODELS.register_module()
class CmtDetector(Trunk, Base3DDetector):
    """CMT with AQR: an image branch, a LiDAR branch, and the head that fuses them; or one of the branches.

    ``CmtImageHead`` needs the image branch alone, ``CmtLidarHead`` the LiDAR branch alone.

    The LiDAR branch is either CMT's own or one module. CMT's own has five parts in the config,
    ``pts_voxel_layer`` to ``pts_neck``, and needs spconv. The one module is ``pts_branch``
    (``PillarBranch``).

    Args:
        pts_bbox_head: ``CmtAqrHead``, also called ``CmtHead``; ``CmtImageHead``; or ``CmtLidarHead``.
        image_size: height and width in pixels to which the loader resizes the images; None without an image
            branch, and then no image is read.
        img_backbone, img_neck: mmdet modules; only the neck's first level is used, as in CMT.
        pts_branch: one module from points to a BEV map.
        pts_voxel_layer: arguments of ``VoxelLayer``; the shape of the grid is that of the middle encoder.
        pts_voxel_encoder, pts_middle_encoder, pts_backbone, pts_neck: mmdet3d modules.
        half_sparse_encoder: whether the middle encoder runs in half precision on a GPU, under autocast, while
            nothing in it learns.
        use_grid_mask: whether to mask a grid of rectangles of the images in training.
        norm_eval: whether all batch norms keep their statistics in training, as those of frozen modules do.
        train_cfg: ``dict(pts=...)``, the head's ``train_cfg`` at the place where CMT's configs have it.
        data_preprocessor: ``Det3DDataPreprocessor``; the LiDAR branch voxelises by itself.
        init_cfg: see mmengine.

    Raises:
        pipeline.detector.backbones.lidar_branch.BranchError: both LiDAR branches or an incomplete one; or the
            branches are not those of the head.
        pipeline.detector.backbones.sparse_conv.SparseConvError: CMT's own branch, and spconv is missing.
    """

    add_pred_to_datasample: Any  # of Base3DDetector, which has no types

    def __init__(
        self,
        pts_bbox_head: dict[str, Any],
        image_size: tuple[int, int] | None = None,
        img_backbone: dict[str, Any] | None = None,
        img_neck: dict[str, Any] | None = None,
        pts_branch: dict[str, Any] | None = None,
        pts_voxel_layer: dict[str, Any] | None = None,
        pts_voxel_encoder: dict[str, Any] | None = None,
        pts_middle_encoder: dict[str, Any] | None = None,
        pts_backbone: dict[str, Any] | None = None,
        pts_neck: dict[str, Any] | None = None,
        half_sparse_encoder: bool = True,
        use_grid_mask: bool = False,
        norm_eval: bool = False,
        train_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.norm_eval = norm_eval
        self.build_image_branch(image_size, img_backbone, img_neck, use_grid_mask)
        parts = {
            "pts_voxel_layer": pts_voxel_layer,
            "pts_voxel_encoder": pts_voxel_encoder,
            "pts_middle_encoder": pts_middle_encoder,
            "pts_backbone": pts_backbone,
            "pts_neck": pts_neck,
        }
        self.build_lidar_branch(pts_branch, parts, half_sparse_encoder)
        self.pts_bbox_head = MODELS.build(with_train_cfg(pts_bbox_head, train_cfg))
        self._check_branches(pts_bbox_head)
        self.graphs: Graphs | None = None  # see ``deployment.use_graphs``

    def _check_branches(self, head: dict[str, Any]) -> None:
        """Raise BranchError unless the branches are those that the head reads."""
        there = (*((LIDAR,) * self.has_lidar), *((CAMERA,) * self.has_images))
        if there != self.pts_bbox_head.SENSORS:
            names = {LIDAR: "a LiDAR branch", CAMERA: "an image branch"}
            wanted, got = (
                " and ".join(names[sensor] for sensor in sensors) or "none"
                for sensors in (self.pts_bbox_head.SENSORS, there)
            )
            raise BranchError(f"model: {head.get('type')} needs {wanted}, and the model has {got}")

    @property
    def sites(self) -> list[str]:
        """Paths of all attention sites, in the order of computation."""
        return list(self.pts_bbox_head.sites)

    @property
    def plan(self) -> Plan:
        """The choice of every site at this moment, as a resolved plan."""
        return Plan(tuple((site, module.choice) for site, module in self.pts_bbox_head.sites.items()))

    @property
    def bias_scale(self) -> nn.Parameter | None:
        """The learned scale of the attention bias; None if there is no bias generator."""
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
        for i, site in enumerate(self.pts_bbox_head.transformer.decoder.cross_attentions):
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
        """x, y, z minima and maxima, in m, of the detection range."""
        return [float(value) for value in self.pts_bbox_head.point_range.tolist()]

    def apply_plan(self, plan: Plan, device: str | None = None, dtype: str = "float32") -> None:
        """Set the choice of every site. If any choice is refused, nothing changes.

        Args:
            plan: resolved or not.
            device: ``cpu`` or ``cuda``, where the model will run; None: where it is now.
            dtype: of the attention inputs, such as ``bfloat16`` under autocast.

        Raises:
            PlanError: the plan does not fit the sites, or a site's implementation cannot serve its bias. The
                message lists all objections.
        """
        resolved = plan.resolve(self.sites)
        device = device or next(self.parameters()).device.type
        refused = [
            f"{site}: {choice} cannot run: {objection}"
            for site, choice in resolved.choices
            for objection in self._objections(site, choice, device, dtype)
        ]
        if refused:
            raise PlanError("; ".join(refused))
        for site, choice in resolved.choices:
            self.pts_bbox_head.sites[site].choice = choice

    def _objections(self, site: str, choice: Choice, device: str, dtype: str) -> list[str]:
        """List why ``choice`` cannot run at ``site``; empty if it can."""
        head, module = self.pts_bbox_head, self.pts_bbox_head.sites[site]
        if choice.bias not in module.kinds:
            return [f"the site takes {', '.join(module.kinds)}"]
        if choice.bias != "none" and head.bias_generator is None:
            return [
                "the model has no bias generator; give the head aqr_config and bias_config, or choose 'none'"
            ]
        sizes = module.sizes(head.num_query, head.denoising.scalar > 0)
        return [
            f"{objection} (asked for {request})"
            for request in training_requests(choice, sizes, device, dtype)
            for objection in objections(choice.impl, request)
        ]

    def train(self, mode: bool = True) -> "CmtDetector":
        """Set the mode. With ``norm_eval``, or with frozen parameters, a batch norm keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            own = list(module.parameters(recurse=False))
            frozen = own and not any(p.requires_grad for p in own)
            if isinstance(module, _BatchNorm) and (self.norm_eval or frozen):
                module.training = False
        return self

    def extract_feat(self, batch_inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Run both branches.

        Args:
            batch_inputs: ``imgs`` (B, V, 3, H, W) normalised; ``points``, a list of (N, 5); perhaps ``ready``
                (``data_samples.preprocess``). Or only ``trunk``: what ``run_trunk`` made of these.

        Returns:
            BEV features (B, C', h, w), and image features (B * V, C, h', w'), sample by sample.
        """
        trunk = batch_inputs.get("trunk")
        return self.run_after_trunk(self.run_trunk(batch_inputs) if trunk is None else trunk)

    def loss_divisors(self, batch_data_samples: Sequence[Det3DDataSample]) -> RankMean:
        """Begin to average what the losses are divided by; see ``HeadLosses.loss_divisors``."""
        found: RankMean = self.pts_bbox_head.loss_divisors(batch_data_samples)
        return found

    def loss(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Det3DDataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; see ``CmtAqrHead.loss``."""
        return self.pts_bbox_head.loss(*self.extract_feat(batch_inputs), batch_data_samples, **kwargs)

    def predict(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Det3DDataSample], **kwargs: Any
    ) -> list[Det3DDataSample]:
        """Detect, and return the data samples with the boxes as ``pred_instances_3d``."""
        boxes = self.pts_bbox_head.predict(*self.extract_feat(batch_inputs), batch_data_samples, **kwargs)
        return self.add_pred_to_datasample(list(batch_data_samples), boxes)

    def _forward(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Det3DDataSample], **kwargs: Any
    ) -> HeadOutput:
        """Run the network without losses or decoding (mmengine's mode ``tensor``)."""
        return self.pts_bbox_head(*self.extract_feat(batch_inputs), *read_meta(batch_data_samples), **kwargs)


def with_train_cfg(head: dict[str, Any], train_cfg: dict[str, Any] | None) -> dict[str, Any]:
    """Return the head's config with ``model.train_cfg.pts`` in it, as mmdet3d's detectors do."""
    if train_cfg is None:
        return head
    if set(train_cfg) != {"pts"} or "train_cfg" in head:
        raise ValueError(
            f"model.train_cfg: expected dict(pts=...) and no pts_bbox_head.train_cfg beside it, "
            f"got the keys {', '.join(train_cfg)}"
        )
    return {**head, "train_cfg": train_cfg["pts"]}
