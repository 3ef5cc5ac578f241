"""Head of CMT-AQR: queries, position embeddings, decoder with attention biases, boxes and losses.

CMT (arXiv 2301.01283, repository junjie18/CMT) with AQR: a weight generator computes a LiDAR and a camera
weight per query, and a bias generator turns the weights into attention biases of the decoder's
cross-attentions. All sizes come from the config or the features. Config keys are those of CMT.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from operators.grid import CAMERA, LIDAR
from pipeline.detector.acceleration.async_transfer import download
from pipeline.detector.acceleration.cuda_graph import Graphs, replayed
from pipeline.detector.head.denoising import DenoisingSettings, denoising_mask
from pipeline.detector.head.head_losses import HeadLosses, split_slots
from pipeline.detector.head.losses import SetCriterion
from pipeline.detector.head.predictions import HeadOutput, Predictions
from pipeline.detector.head.sensor_weighting import SensorWeighting, check_head_parts
from pipeline.detector.head.task_head import SeparateTaskHead, tf32_products
from pipeline.detector.openmmlab.data_samples import read_meta
from pipeline.detector.transformer.config_keys import without_type
from pipeline.detector.transformer.decoder import CmtTransformer
from pipeline.detector.transformer.embedding import Embedding
from pipeline.detector.transformer.position_encoding import Cameras, Memory, inverse_sigmoid
from pipeline.detector.transformer.site_attention import SiteAttention


@MODELS.register_module(name=["CmtAqrHead", "CmtHead"])
class CmtAqrHead(HeadLosses, SensorWeighting, Embedding):
    """CMT's head with an optional AQR weight generator and attention bias.

    Attributes:
        transformer: the decoder; its sites hold their choices of bias and implementation.
        graphs: CUDA graphs for ``predict``; None: kernel by kernel. See ``deployment.use_graphs``.
        train_graphs: the same for training; see ``deployment.train_through_graphs``.
        TRANSFORMERS: types that ``transformer`` may have; CMT has one for each set of sensors.
    """

    TRANSFORMERS: tuple[str, ...] = ("CmtTransformer",)

    def __init__(
        self,
        in_channels: int,
        hidden_dim: int,
        num_query: int,
        tasks: Sequence[Mapping[str, Any]],
        transformer: Mapping[str, Any],
        bbox_coder: Mapping[str, Any],
        loss_cls: Mapping[str, Any],
        loss_bbox: Mapping[str, Any],
        common_heads: Mapping[str, Sequence[int]],
        separate_head: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        depth_num: int = 64,
        denoising: Mapping[str, Any] | None = None,
        aqr_config: Mapping[str, Any] | None = None,
        bias_config: Mapping[str, Any] | None = None,
        weight_map_config: Mapping[str, Any] | None = None,
        default_bias: str | None = None,
        token_loss_weight: float = 0.0,
        query_losses: bool = True,
    ):
        """Build from a config. Keys marked "ours" are not in CMT.

        Args:
            in_channels: channels of the BEV features.
            hidden_dim: C, channels of the image features and of everything after.
            num_query: number of learned queries.
            tasks: one group, ``[dict(num_class, class_names)]``.
            transformer: ``dict(type='CmtTransformer', decoder=...)``.
            bbox_coder: ``dict(type='MultiTaskBBoxCoder', ...)``; its ``pc_range`` is the head's.
            loss_cls: see ``SetCriterion``.
            loss_bbox: see ``SetCriterion``.
            common_heads: see ``SeparateTaskHead``.
            separate_head: see ``SeparateTaskHead``.
            train_cfg: ``dict(assigner, code_weights)``; None builds a head without losses.
            depth_num: number of depth samples of a viewing ray.
            denoising: ours: ``DenoisingSettings``; CMT has them as separate keys.
            aqr_config: ours: config of the weight generator.
            bias_config: ours: config of the bias generator; give both or neither.
            weight_map_config: ours: config of the weight maps that multiply the decoder's memory, as in AQR
                before it had a bias; deprecated; None: no maps.
            default_bias: ours: bias of cross-attentions whose config names none. None: the kind of
                ``bias_config`` (``window`` by default), or ``none`` without AQR.
            token_loss_weight: ours: factor on the losses of the keys (``SetCriterion.token_terms``), for
                training from scratch; 0: none, as in CMT.
            query_losses: ours: False trains the branches alone, by the losses of the keys.

        Raises:
            ValueError: parts of the config that do not go together.
        """
        super().__init__(in_channels, hidden_dim, num_query, depth_num)
        check_head_parts(tasks, aqr_config, bias_config, weight_map_config)
        self.num_classes = int(tasks[0]["num_class"])
        self.graphs: Graphs | None = None
        self.train_graphs = None
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        if self.bbox_coder.num_classes != self.num_classes:
            raise ValueError(
                f"pts_bbox_head: tasks have {self.num_classes} classes, "
                f"bbox_coder.num_classes is {self.bbox_coder.num_classes}"
            )
        self.register_buffer("point_range", torch.tensor(self.bbox_coder.pc_range), persistent=False)
        self.whiten_positions()
        self.denoising = DenoisingSettings(**(denoising or {}))
        self.token_loss_weight, self.query_losses = float(token_loss_weight), query_losses
        if not (query_losses or token_loss_weight > 0):
            raise ValueError("pts_bbox_head: query_losses=False needs a token_loss_weight above 0")
        self.bias_generator = MODELS.build(bias_config) if bias_config is not None else None
        self.weight_map = MODELS.build(weight_map_config) if weight_map_config is not None else None
        kind = default_bias or ("none" if self.bias_generator is None else self.bias_generator.default_kind)
        settings = without_type(transformer, "pts_bbox_head.transformer", *self.TRANSFORMERS)
        self.transformer = CmtTransformer(**settings, default_bias=kind)
        heads = without_type(separate_head or {}, "pts_bbox_head.separate_head", "SeparateTaskHead")
        num_layers = len(self.transformer.decoder.layers)
        self.task_heads = nn.ModuleList(
            [SeparateTaskHead(hidden_dim, self.num_classes, num_layers, common_heads, **heads)]
        )
        self.aqr = MODELS.build(aqr_config) if aqr_config is not None else None
        self.criterion = None
        if train_cfg is not None:
            self.criterion = SetCriterion.of(train_cfg, loss_cls, loss_bbox, self.denoising)

    @cached_property
    def sites(self) -> dict[str, SiteAttention]:
        """Path -> attention site, in the order of computation. Cached: the walk takes a millisecond."""
        modules = [m for part in (self.aqr, self.transformer) if part is not None for m in part.modules()]
        return {m.site: m for m in modules if isinstance(m, SiteAttention)}

    def predict(
        self, bev_feats: Tensor, img_feats: Tensor, data_samples: Sequence[Any]
    ) -> list[InstanceData]:
        """Detect.

        Args:
            bev_feats: see ``forward``.
            img_feats: see ``forward``.
            data_samples: as for ``loss``, without ground truth.

        Returns:
            Per sample ``bboxes_3d`` (of its ``box_type_3d``), ``scores_3d`` and ``labels_3d``, best first, on
            the host. The host waits for the device once.
        """
        matrices, pad_hw = read_meta(data_samples)
        cameras = Cameras.of(matrices, bev_feats.device)
        inputs = (bev_feats, img_feats, cameras.lidar2img, cameras.inverse)
        choices = tuple(site.choice for site in self.sites.values())
        best = replayed(self, "head", partial(self.detect, pad_hw=pad_hw), inputs, choices, (pad_hw,))
        kept = self.bbox_coder.keep(*download(*best))
        instances = []
        for sample, decoded in zip(data_samples, kept, strict=True):
            boxes = sample.metainfo["box_type_3d"](decoded.boxes, box_dim=9, origin=(0.5, 0.5, 0.5))
            instances.append(
                InstanceData(bboxes_3d=boxes, scores_3d=decoded.scores, labels_3d=decoded.labels)
            )
        return instances

    def detect(
        self,
        bev_feats: Tensor,
        img_feats: Tensor,
        lidar2img: Tensor,
        inverse: Tensor,
        pad_hw: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect from tensors to tensors on the model's device. It never waits, so a graph can capture it.

        Args:
            bev_feats: see ``forward``.
            img_feats: see ``forward``.
            lidar2img: see ``Cameras``.
            inverse: see ``Cameras``.
            pad_hw: see ``forward``.

        Returns:
            See ``MultiTaskBBoxCoder.best``.
        """
        output = self(bev_feats, img_feats, Cameras(lidar2img, inverse), pad_hw, last_only=True)
        return self.bbox_coder.best(output.matching.codes[-1], output.matching.logits[-1])

    def forward(
        self,
        bev_feats: Tensor,
        img_feats: Tensor,
        lidar2img: Tensor | Cameras,
        pad_hw: tuple[int, int],
        targets: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
        rand01: Tensor | None = None,
        last_only: bool = False,
    ) -> HeadOutput:
        """Run the head.

        Args:
            bev_feats: (B, in_channels, H, W); rows are along y. Empty, if ``SENSORS`` has no LiDAR.
            img_feats: (B * V, C, h, w), sample by sample. Empty, if ``SENSORS`` has no camera.
            lidar2img: (B, V, 4, 4) float64, LiDAR frame in m -> (u*d, v*d, d, 1), in pixels; or the
                ``Cameras`` made from it.
            pad_hw: height and width in pixels of the padded images.
            targets: on the host, per sample: boxes (M, 9) with z at the box centre, and labels; None: no
                denoising.
            rand01: (n, 3) draws in [0, 1) of the denoising noise, for tests.
            last_only: compute predictions of the last decoder layer only (inference).
        """
        given, device = lidar2img, bev_feats.device
        cameras = given if isinstance(given, Cameras) else Cameras.of(given, device)
        queries = noised = group = None
        if targets is not None:
            queries = self.noise(*targets, rand01)
        if queries is not None:
            queries = queries.to(device)
            noised, group = queries.points, queries.membership(self.num_query)
        memory = self.make_memory(bev_feats, img_feats, cameras, pad_hw)
        codes, logits, *weights = self.compute(memory, noised, group, last_only=last_only)
        sensor_weights = weights[0] if weights else None
        matching, denoising = split_slots(codes, logits, 0 if queries is None else queries.num_slots)
        noised_output = None if queries is None or denoising is None else (denoising, queries)
        return HeadOutput(matching, noised_output, sensor_weights)

    def compute(
        self,
        memory: Memory,
        noised: Tensor | None,
        group: Tensor | None,
        scales: Tensor | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, ...]:
        """Predict from tensors. The host needs only their shapes, so that a graph can capture it.

        Args:
            memory: what the decoder attends to.
            noised: (B, P, 3) reference points of the denoising slots, which come first; None: no denoising.
            group: see ``denoising.blocked``.
            scales: see ``AttentionBiasGenerator.forward``.
            last_only: see ``forward``.

        Returns:
            Codes and logits of all queries (``Predictions``), and the sensors' weights if there are any
            (``HeadOutput``).
        """
        points = self.reference_points.weight.expand(len(memory.tokens), -1, -1)
        if noised is not None:
            points = torch.cat([noised, points], dim=1)
        query_pos = self.embed_queries(points, memory)
        choices = self.transformer.decoder.choices
        weights, biases, memory = self.weigh_sensors(choices, points, query_pos, memory, scales)
        mask = None if group is None else denoising_mask(group)
        states = self.transformer.decoder(memory.keys, memory.tokens, query_pos, mask, biases, last_only)
        predictions = self.predict_boxes(states, points)
        return (predictions.codes, predictions.logits, *([] if weights is None else [weights]))

    def predict_boxes(self, states: Tensor, points: Tensor) -> Predictions:
        """Run the task heads on states (n, B, Q, C); x, y and log length are relative to the points.

        They keep single precision under autocast, because half precision resolves 108 m to half a metre. Only
        products round their operands, to TF32: the states have fewer digits by then.
        """
        device = states.device.type
        mixed = device == "cuda" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False), tf32_products(mixed):
            raw, logits = self.task_heads[0](states.float())
            low, high = self.point_range[:3], self.point_range[3:]
            # The third channel is log length, and yet CMT adds it to the reference z (see ``box_coder``).
            anchored = (raw[..., :3] + inverse_sigmoid(points)).sigmoid() * (high - low) + low
            return Predictions(torch.cat([anchored, raw[..., 3:]], dim=-1), logits)


@MODELS.register_module()
class CmtImageHead(CmtAqrHead):
    """The head of CMT's camera-only model: the keys are camera cells; ``in_channels`` has no effect."""

    SENSORS = (CAMERA,)
    TRANSFORMERS = ("CmtImageTransformer", "CmtTransformer")


@MODELS.register_module()
class CmtLidarHead(CmtAqrHead):
    """The head of CMT's LiDAR-only model: the keys are BEV cells."""

    SENSORS = (LIDAR,)
    TRANSFORMERS = ("CmtLidarTransformer", "CmtTransformer")
