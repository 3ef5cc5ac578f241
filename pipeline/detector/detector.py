"""CmtDetector: six images and a point cloud in, boxes out; a standard mmdet3d model.

It builds from a config through mmdet3d's ``MODELS`` and trains under our loop as under mmengine's Runner.
"""

from collections.abc import Sequence
from typing import Any

from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from operators import objections
from pipeline.detector.attention import training_requests
from pipeline.detector.head import HeadOutput, read_meta
from pipeline.plan import Choice, Plan, PlanError


@MODELS.register_module()
class CmtDetector(Base3DDetector):
    """CMT with AQR: image branch, LiDAR branch, and the head that fuses them.

    Args:
        image_size: height and width in pixels of the images it is made for; the loader brings them there.
        img_backbone, img_neck: mmdet modules; only the neck's first level is used, as in CMT.
        pts_branch: points to one BEV map (``PillarBranch``).
        pts_bbox_head: ``CmtAqrHead``.
        data_preprocessor: ``Det3DDataPreprocessor``; voxelisation is the LiDAR branch's own.
        init_cfg: see mmengine.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        img_backbone: dict[str, Any],
        img_neck: dict[str, Any],
        pts_branch: dict[str, Any],
        pts_bbox_head: dict[str, Any],
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.pts_branch = MODELS.build(pts_branch)
        self.pts_bbox_head = MODELS.build(pts_bbox_head)

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

    def bias_numbers(self) -> dict[str, Tensor]:
        """Return how the bias' scale learns: copies, on the device, by ``metric`` or ``metric@site``.

        ``bias_scale`` and ``bias_scale_grad`` of the model (the mean over the layers if each has its own),
        and after a backward pass that reached it ``bias_scale_grad`` of every biased site: what that layer
        alone would do to the scale. ``bias_scale`` of a site only where layers have their own.
        """
        generator = self.pts_bbox_head.bias_generator
        if generator is None:
            return {}
        scale, grad = generator.bias_scale, generator.bias_scale.grad
        found = {"bias_scale": scale.detach().mean()}
        if grad is not None:
            found["bias_scale_grad"] = grad.mean()
        for i, site in enumerate(self.pts_bbox_head.transformer.decoder.crosses):
            if site.choice.bias == "none":
                continue
            if scale.numel() > 1:
                found[f"bias_scale@{site.site}"] = scale.detach()[i].clone()
            if grad is not None and generator.slopes is not None:
                found[f"bias_scale_grad@{site.site}"] = generator.slopes[i]
        return found

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
        images = self.image_features(batch_inputs["imgs"])
        return self.pts_branch(batch_inputs["points"]), images

    def image_features(self, images: Tensor) -> Tensor:
        """Run the image branch on (B, V, 3, H, W) normalised images; see ``extract_feat``."""
        return self.img_neck(self.img_backbone(images.flatten(0, 1)))[0]

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
