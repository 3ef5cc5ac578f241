"""The part of the head that training adds: denoising queries, losses, and the CUDA graphs of both passes."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.detector.acceleration.async_transfer import constant, upload
from pipeline.detector.acceleration.training_graph import TrainGraphs
from pipeline.detector.head.cell_targets import cell_targets
from pipeline.detector.head.denoising import (
    DenoisingQueries,
    DenoisingSettings,
    make_denoising_queries,
    num_groups,
)
from pipeline.detector.head.losses import TOKEN_TERMS, SetCriterion, by_name
from pipeline.detector.head.predictions import Predictions
from pipeline.detector.head.targets import Targets
from pipeline.detector.openmmlab.data_samples import num_boxes, read_ground_truth, read_meta
from pipeline.detector.transformer.position_encoding import Cameras, Memory
from pipeline.runtime.collectives import RankMean

QUERY_MULTIPLE = 128
"""In training through CUDA graphs the number of queries, denoising slots included, is a multiple of this.

With 900 learned queries that makes eight sizes, and 64 queries more on average. Attention kernels work on
blocks of 64 or 128 queries in any case."""

PLACE_MULTIPLE = 64
"""In training through CUDA graphs the number of places for boxes in a sample is a multiple of this."""

HOST = torch.device("cpu")


class HeadLosses(nn.Module):
    """Mixin of a head that trains.

    Attributes:
        num_query: number of matching queries.
        num_classes: number of classes.
        denoising: settings of the noise.
        token_loss_weight: factor on the losses of the keys (``SetCriterion.token_terms``); 0: none.
        query_losses: whether the queries have losses; without, the decoder does not run in training.
        criterion: the losses; None for a head that only detects.
        train_graphs: CUDA graphs of a training step; None: kernel by kernel. See
            ``deployment.train_through_graphs``.
    """

    num_query: int
    num_classes: int
    denoising: DenoisingSettings
    token_loss_weight: float
    query_losses: bool
    point_range: Tensor
    criterion: SetCriterion | None
    train_graphs: TrainGraphs | None
    bbox_coder: Any
    bias_generator: Any
    transformer: Any
    aqr: Any
    weight_map: Any
    sites: Any
    make_memory: Any
    compute: Any
    predict_boxes: Any

    def noise(
        self, boxes: Sequence[Tensor], labels: Sequence[Tensor], rand01: Tensor | None = None
    ) -> DenoisingQueries | None:
        """Make the denoising queries of a batch; see ``make_denoising_queries``."""
        limits = constant(self.bbox_coder.pc_range, HOST)
        return make_denoising_queries(
            boxes, labels, self.num_query, self.num_classes, limits, self.denoising, rand01
        )

    def loss_divisors(self, data_samples: Sequence[Any]) -> RankMean:
        """Begin to average over the ranks what the losses of a batch are divided by.

        Args:
            data_samples: see ``loss``; only how many boxes they have is read.
        """
        counts = num_boxes(data_samples)
        slots = num_groups(counts, self.num_query, self.denoising) * sum(counts)
        device = next(self.parameters()).device
        return SetCriterion.divisors(counts, self.num_query, slots, device)

    def loss(
        self,
        bev_feats: Tensor,
        img_feats: Tensor,
        data_samples: Sequence[Any],
        divisors: RankMean | None = None,
    ) -> dict[str, Tensor]:
        """Compute the training losses. On a GPU the host does not wait for the device.

        Args:
            bev_feats: see ``CmtAqrHead.forward``.
            img_feats: see ``CmtAqrHead.forward``.
            data_samples: ``Det3DDataSample`` with ``gt_instances_3d``, best on the host, and with
                ``lidar2img`` and ``batch_input_shape`` in the meta information.
            divisors: ``loss_divisors`` of the same samples, from before the forward pass; None: now.

        Returns:
            See ``losses.by_name``.

        Raises:
            ValueError: the head was built without ``train_cfg``.
            DataError: see ``read_ground_truth``.
        """
        if self.criterion is None:
            raise ValueError("this head was built without train_cfg and has no losses")
        device = bev_feats.device
        boxes, labels = read_ground_truth(data_samples, HOST, self.num_classes)
        matrices, pad_hw = read_meta(data_samples)
        cameras = Cameras.of(matrices, device)
        most = max(len(label) for label in labels)
        graphs = self._active_train_graphs() if most <= self.num_query else None
        features = (bev_feats, img_feats, cameras.lidar2img, cameras.inverse)
        given = self._ground_truth(boxes, labels, device, padded=graphs is not None)
        truth = ((divisors or self.loss_divisors(data_samples)).read(), *given)
        if graphs is None:
            loss_terms: Callable[..., tuple[Tensor, ...]] = self.loss_terms
            return self._named(loss_terms(*features, *truth, pad_hw=pad_hw))
        choices, scales = self.transformer.decoder.choices, None
        if self.bias_generator is not None and any(choice.bias != "none" for choice in choices):
            scales = self.bias_generator.watched_scales(len(choices))  # here, because a replay runs no hooks
        key = (pad_hw, tuple(site.choice for site in self.sites.values()))
        loss_terms = partial(self.loss_terms, pad_hw=pad_hw)
        return self._named(graphs.run(key, loss_terms, (*features, *truth, scales)))

    def _named(self, terms: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Name the results of ``loss_terms``."""
        of_queries = by_name(terms[0]) if self.query_losses else {}
        of_tokens = zip(TOKEN_TERMS, terms[-1].unbind(), strict=True) if self.token_loss_weight else ()
        return of_queries | dict(of_tokens)

    def _ground_truth(
        self, boxes: Sequence[Tensor], labels: Sequence[Tensor], device: torch.device, padded: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the boxes of a batch, on the device: arguments of ``loss_terms`` from ``boxes`` on.

        Args:
            boxes: per sample, on the host.
            labels: per sample, on the host.
            device: of the model.
            padded: to sizes that come again.
        """
        places = 1
        if padded:
            most = max(1, *(len(label) for label in labels))
            places = min(math.ceil(most / PLACE_MULTIPLE) * PLACE_MULTIPLE, self.num_query)
        targets = Targets.of(boxes, labels, places)
        queries = self.noise(boxes, labels)
        given: list[Tensor | None] = [targets.boxes, targets.labels, None, None, None, None]
        if queries is not None:
            queries = queries.padded(self.num_query, QUERY_MULTIPLE) if padded else queries
            slots = queries.targets(len(boxes))
            given[2:] = [queries.points, queries.membership(self.num_query), slots.boxes, slots.labels]
        return tuple(None if x is None else upload(x, device) for x in given)

    def loss_terms(
        self,
        bev_feats: Tensor,
        img_feats: Tensor,
        lidar2img: Tensor,
        inverse: Tensor,
        divisors: Tensor,
        boxes: Tensor,
        labels: Tensor,
        noised: Tensor | None,
        group: Tensor | None,
        slot_boxes: Tensor | None,
        slot_labels: Tensor | None,
        scales: Tensor | None = None,
        *,
        pad_hw: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        """Predict and compute the losses, from tensors, so that a graph can capture it.

        Args:
            bev_feats: see ``CmtAqrHead.compute``.
            img_feats: see there.
            lidar2img: see there.
            inverse: see there.
            divisors: see ``SetCriterion.terms``.
            boxes: of ``Targets``: the ground truth.
            labels: likewise.
            noised: see ``CmtAqrHead.compute``.
            group: see there.
            slot_boxes: of ``Targets``: what the denoising slots should predict; None: no denoising.
            slot_labels: likewise.
            scales: see ``CmtAqrHead.compute``.
            pad_hw: see ``CmtAqrHead.forward``.

        Returns:
            With ``query_losses`` (4, L), see ``SetCriterion.terms``; then with a ``token_loss_weight`` (2,),
            see ``SetCriterion.token_terms``.
        """
        assert self.criterion is not None
        truth = Targets(boxes, labels)
        memory = self.make_memory(bev_feats, img_feats, Cameras(lidar2img, inverse), pad_hw)
        of_tokens = (self._token_terms(memory, truth, divisors[0]),) if self.token_loss_weight else ()
        if not self.query_losses:
            return of_tokens
        codes, logits, *_ = self.compute(memory, noised, group, scales)
        matching, denoising = split_slots(codes, logits, 0 if noised is None else noised.shape[1])
        with_targets = None
        if denoising is not None and slot_boxes is not None and slot_labels is not None:
            with_targets = (denoising, Targets(slot_boxes, slot_labels))
        return (self.criterion.terms(matching, truth, with_targets, divisors), *of_tokens)

    def _token_terms(self, memory: Memory, truth: Targets, boxes: Tensor) -> Tensor:
        """Return the losses (2,) of the keys, which task heads read like queries.

        The heads of the last layer do; without ``query_losses`` those of every layer, so that each of them
        understands what its queries will read of the keys.
        """
        assert self.criterion is not None
        cells = cell_targets(memory, self.point_range, truth, self.num_classes)
        decoder = self.transformer.decoder
        layers = 1 if self.query_losses else len(decoder.layers)
        states = decoder.post_norm(memory.tokens).expand(layers, -1, -1, -1)
        found = self.predict_boxes(states, cells.points.nan_to_num(0.5))
        return self.token_loss_weight * self.criterion.token_terms(found, cells, truth, boxes)

    def _active_train_graphs(self) -> TrainGraphs | None:
        """Return the graphs of a training step; None if this step runs kernel by kernel."""
        replays = self.training and torch.is_grad_enabled() and self.query_losses
        if self.train_graphs is None or not replays:
            return None
        used = {site.choice.impl for site in self.sites.values()}
        parts = [self.transformer.decoder, *([] if self.aqr is None else [self.aqr.encoder])]
        if any(layer.with_cp for part in parts for layer in part.layers):
            used.add("with_cp=True")
        if self.weight_map is not None:
            used.add("weight_map_config")
        return self.train_graphs if self.train_graphs.admit(used) else None


def split_slots(codes: Tensor, logits: Tensor, slots: int) -> tuple[Predictions, Predictions | None]:
    """Split predictions (L, B, P + Q, ...) into those of the matching and of the denoising queries."""
    if not slots:
        return Predictions(codes, logits), None
    matching = Predictions(codes[:, :, slots:], logits[:, :, slots:])
    return matching, Predictions(codes[:, :, :slots], logits[:, :, :slots])
