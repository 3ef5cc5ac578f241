"""Set-prediction and denoising losses of CMT: focal for classes, L1 for box codes.

Every decoder layer is matched by itself and has its own losses, with equal weight.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor
from torch.nn import functional as F

from pipeline.detector.acceleration.async_transfer import constant, upload
from pipeline.detector.head.box_coder import CODES, encode_boxes
from pipeline.detector.head.cell_targets import CellTargets
from pipeline.detector.head.denoising import DenoisingQueries, DenoisingSettings
from pipeline.detector.head.matching import HungarianAssigner3D, read_cost
from pipeline.detector.head.predictions import Predictions, check_finite
from pipeline.detector.head.targets import NOTHING, Targets
from pipeline.runtime.collectives import RankMean

NEGATIVE_SHARE = 0.1  # weight of a negative query in the divisor of the classification loss (CMT)

TERMS = ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox")
"""Losses of one decoder layer, in the order of ``SetCriterion.terms``."""

TOKEN_TERMS = ("token_loss_cls", "token_loss_bbox")
"""Losses of the keys, in the order of ``SetCriterion.token_terms``."""


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the sigmoid focal loss (arXiv 1708.02002), without reduction.

    It is plain PyTorch. mmdet's class needs a compiled kernel for integer labels on a GPU.

    Args:
        logits: (..., C).
        labels: (...), or of a shape that expands to it, int64: a class, or another number for background.
        alpha: weight of positives.
        gamma: focusing exponent.

    Returns:
        (..., C).
    """
    classes = torch.arange(logits.shape[-1], device=labels.device)
    target = (labels[..., None] == classes).to(logits).expand_as(logits)
    p = logits.sigmoid()
    miss = (1 - p) * target + p * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * miss.pow(gamma)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight


class SetCriterion:
    """The losses of a batch.

    Attributes:
        assigner: matches queries and boxes.
        code_weights: ten factors on the box loss, in the order of ``box_coder.CODES``.
        dn_weight: factor on both denoising losses.
        positive_share: expected share of positive denoising queries, for their divisor.
    """

    def __init__(
        self,
        assigner: HungarianAssigner3D,
        loss_cls: dict,
        loss_bbox: dict,
        code_weights: Sequence[float],
        dn_weight: float,
        positive_share: float,
    ):
        """Read the losses of CMT's config.

        Args:
            assigner: matches queries and boxes.
            loss_cls: ``dict(type='FocalLoss', use_sigmoid=True, gamma=2, alpha=.25, loss_weight)``.
            loss_bbox: ``dict(type='L1Loss', loss_weight)``.
            code_weights: ten factors.
            dn_weight: factor on the denoising losses.
            positive_share: expected share of positive denoising queries.

        Raises:
            ValueError: a loss that is not CMT's, an unknown key, or another number of factors.
        """
        if len(code_weights) != len(CODES):
            raise ValueError(
                f"code_weights: expected {len(CODES)} numbers ({', '.join(CODES)}), got {code_weights}"
            )
        cls_cfg = dict(loss_cls)
        if not cls_cfg.pop("use_sigmoid", True):
            raise ValueError("loss_cls: use_sigmoid=False is not CMT's loss; remove it or set it to True")
        focal = read_cost("loss_cls", cls_cfg, "FocalLoss", {"loss_weight": 1.0, "alpha": 0.25, "gamma": 2.0})
        self.cls_weight, self.alpha, self.gamma = focal["loss_weight"], focal["alpha"], focal["gamma"]
        self.bbox_weight = read_cost("loss_bbox", loss_bbox, "L1Loss", {"loss_weight": 1.0})["loss_weight"]
        self.assigner = assigner
        self.code_weights = tuple(float(w) for w in code_weights)
        self.dn_weight, self.positive_share = dn_weight, positive_share

    @classmethod
    def of(
        cls,
        train_cfg: Mapping[str, Any],
        loss_cls: Mapping[str, Any],
        loss_bbox: Mapping[str, Any],
        denoising: DenoisingSettings,
    ) -> "SetCriterion":
        """Build from ``train_cfg`` (``dict(assigner, code_weights)``) and the losses of the head's config.

        Raises:
            ValueError: an unknown key in ``train_cfg``, or see the constructor.
        """
        unknown = sorted(set(train_cfg) - {"assigner", "code_weights"})
        if unknown:
            raise ValueError(f"pts_bbox_head.train_cfg: unknown keys {', '.join(unknown)}")
        assigner = TASK_UTILS.build(train_cfg["assigner"])
        share, factor = denoising.positive_share, denoising.dn_weight
        return cls(assigner, dict(loss_cls), dict(loss_bbox), train_cfg["code_weights"], factor, share)

    def __call__(
        self,
        matching: Predictions,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        denoising: tuple[Predictions, DenoisingQueries] | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            matching: predictions of the matching queries.
            boxes: per sample (M, 9), z at the box centre. A box with a NaN velocity is matched and
                classified, but has no box loss.
            labels: per sample (M,).
            denoising: predictions of the denoising slots, and the queries; None without denoising.

        Returns:
            See ``by_name``.

        Raises:
            FloatingPointError: see ``terms``.
        """
        batch, queries = matching.logits.shape[1:3]
        noised = None if denoising is None else (denoising[0], denoising[1].targets(batch))
        slots = 0 if denoising is None else len(denoising[1].slot)
        divisors = self.divisors([len(label) for label in labels], queries, slots, matching.codes.device)
        return by_name(self.terms(matching, Targets.of(boxes, labels), noised, divisors.read()))

    @staticmethod
    def divisors(counts: Sequence[int], queries: int, slots: int, device: torch.device) -> RankMean:
        """Return the numbers of matched, unmatched and denoising queries, (3,) float32: means over the ranks.

        Ranks average gradients, so a sum over all samples divided by the global count is a local sum divided
        by the mean count. CMT averages only the divisor of the denoising box loss. We average all divisors,
        so that one worker and many workers train with the same loss.

        Every matching matches as many boxes as there are queries for, whatever the model predicts. So the
        numbers are known before the forward pass, and the ranks need not wait for each other in its middle.

        Args:
            counts: boxes of each sample.
            queries: matching queries of a sample.
            slots: denoising queries of the batch.
            device: of the model.
        """
        matched = sum(min(count, queries) for count in counts)  # a query has one box at most
        numbers = torch.tensor([matched, len(counts) * queries - matched, slots], dtype=torch.float32)
        return RankMean(upload(numbers, device))

    def terms(
        self,
        matching: Predictions,
        targets: Targets,
        denoising: tuple[Predictions, Targets] | None,
        divisors: Tensor,
    ) -> Tensor:
        """Compute the losses of every layer. On a GPU the host does not wait, so that a graph can capture it.

        Args:
            matching: predictions of the matching queries.
            targets: the ground truth.
            denoising: predictions of the denoising slots, and what each slot should predict; or None.
            divisors: (3,), see ``divisors``.

        Returns:
            (4, L): ``TERMS``; those of denoising are 0 without denoising.

        Raises:
            FloatingPointError: on a CPU, a prediction or a box is not finite. (On a GPU such a prediction
                makes its layer's losses NaN, which the training step refuses.)
        """
        if not matching.codes.is_cuda:
            noised = {"denoising queries": denoising[0]} if denoising else {}
            check_finite({"matching queries": matching} | noised)
        dn_cls = dn_bbox = matching.codes.new_zeros(len(matching.codes), dtype=torch.float32)
        if denoising:
            dn_cls, dn_bbox = self._denoising_losses(*denoising, divisors[2])
        cls, bbox = self._matching_losses(matching, targets, divisors)
        return torch.stack([cls, bbox, dn_cls, dn_bbox])

    def token_terms(
        self, predictions: Predictions, cells: CellTargets, truth: Targets, boxes: Tensor
    ) -> Tensor:
        """Compute the losses of the keys: the class of every cell, and the box of a BEV cell.

        They are for training from scratch. The other losses reach the branches through attention alone,
        which at first averages thousands of keys; CMT starts from branches that were trained before. Losses
        on what a decoder attends to are the idea of Co-DETR (arXiv 2211.12860). Here they add no weights.

        Args:
            predictions: what the task heads of one layer or more read from the keys, K "queries".
            cells: what the keys show.
            truth: the ground truth.
            boxes: () number of boxes of the batch; the mean over the ranks.

        Returns:
            (2,), ``TOKEN_TERMS``, means over the layers. All cells of a box count together as one query; a
            cell without a box counts as a query without one.
        """
        logits, codes = predictions.logits.float(), predictions.codes.float()
        cls = focal_loss(logits, cells.labels, self.alpha, self.gamma).sum(dim=-1)
        cls = (cls * torch.where(cells.share > 0, cells.share, 1.0)).flatten(1).sum(dim=1)
        target = encode_boxes(truth.boxes).to(codes).take_along_dim(cells.box[..., None], dim=1)
        share = cells.share * cells.points[:, 0].isfinite()
        bbox = self._box_sum(codes, target[None], share[..., None])
        weights = constant((self.cls_weight, self.bbox_weight), codes.device)
        return torch.stack([cls.mean(), bbox.mean()]) * weights / boxes.clamp(min=1)

    def _matching_losses(
        self, predictions: Predictions, targets: Targets, divisors: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, codes = predictions.logits.float(), predictions.codes.float()
        place = self.assigner.assign(codes, logits, targets)
        matched, place = place >= 0, place.clamp(min=0)
        labels = targets.labels.expand(len(place), -1, -1).gather(2, place)
        classes = labels.where(matched, logits.shape[-1])
        target = encode_boxes(targets.boxes).to(codes)[None].take_along_dim(place[..., None], dim=2)
        target = target.where(matched[..., None], torch.nan)  # rows that are NaN have no box loss
        cls_divisor = (divisors[0] + NEGATIVE_SHARE * divisors[1]).clamp(min=1)
        cls = focal_loss(logits, classes, self.alpha, self.gamma).flatten(1).sum(dim=1) / cls_divisor
        bbox = self._box_sum(codes, target) / divisors[0].clamp(min=1)
        return cls * self.cls_weight, bbox * self.bbox_weight

    def _denoising_losses(
        self, predictions: Predictions, targets: Targets, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, codes = predictions.logits.float(), predictions.codes.float()
        used = (targets.labels != NOTHING)[..., None]
        cls = (focal_loss(logits, targets.labels[None], self.alpha, self.gamma) * used).flatten(1).sum(dim=1)
        cls = cls / (count * self.positive_share).clamp(min=1)
        bbox = self._box_sum(codes, encode_boxes(targets.boxes).to(codes)[None]) / count.clamp(min=1)
        return cls * self.cls_weight * self.dn_weight, bbox * self.bbox_weight * self.dn_weight

    def _box_sum(self, codes: Tensor, target: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """Return the weighted L1 distance per layer, summed over the rows with a finite target: (L,).

        Args:
            codes: (L, B, Q, 10).
            target: likewise.
            share: factor on each row, (B, Q, 1) or one for all.
        """
        usable = target.isfinite().all(dim=-1, keepdim=True)
        weights = constant(self.code_weights, codes.device)
        distance = (codes - target.where(usable, codes.detach())).abs() * weights
        return (distance * usable * share).flatten(1).sum(dim=1)


def by_name(terms: Tensor) -> dict[str, Tensor]:
    """Return the losses (4, L) of ``SetCriterion.terms`` as scalars, under the names of CMT.

    Returns:
        ``loss_cls`` and ``loss_bbox`` of the last layer, and ``d0.loss_cls``, ... of the others;
        ``dn_loss_cls``, ``d0.dn_loss_cls``, ... of the denoising queries.
    """
    last = terms.shape[1] - 1
    scalars = terms.flatten().unbind()  # one node of autograd; an index each would be one each
    return {
        (name if layer == last else f"d{layer}.{name}"): scalars[i * (last + 1) + layer]
        for layer in (last, *range(last))
        for i, name in enumerate(TERMS)
    }
