"""Hungarian matching of queries and ground-truth boxes (DETR, arXiv 2005.12872)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.config import ConfigDict
from torch import Tensor

from pipeline.detector.acceleration.async_transfer import constant

FOCAL_EPS = 1e-12  # added inside the logarithms of the focal cost, as in mmdet
MATCHED_CODES = 8  # x, y, z, sizes and yaw; the cost does not include the velocity (CMT)


@dataclass(frozen=True)
class Matching:
    """Matched pairs of one sample.

    Attributes:
        query: (m,) int64, ascending.
        gt: (m,) int64, index of the box that the query is matched to.
    """

    query: Tensor
    gt: Tensor


def focal_cost(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss (arXiv 1708.02002) of a positive query minus that of a negative one.

    Args:
        logits: (..., Q, C).
        labels: (M,).
        alpha: weight of positives.
        gamma: focusing exponent.

    Returns:
        (..., Q, M).
    """
    p = logits.sigmoid()
    negative = -(1 - p + FOCAL_EPS).log() * (1 - alpha) * p.pow(gamma)
    positive = -(p + FOCAL_EPS).log() * alpha * (1 - p).pow(gamma)
    return (positive - negative)[..., labels]


@TASK_UTILS.register_module()
class HungarianAssigner3D:
    """Match queries and boxes one to one with the least total cost.

    Attributes:
        cls_weight, reg_weight: factors on the focal and the L1 cost.
        alpha, gamma: parameters of the focal cost.
        code_weights: factors on the codes of prediction and target before the L1 distance.
    """

    def __init__(
        self, cls_cost: dict, reg_cost: dict, code_weights: Sequence[float], iou_cost: dict | None = None
    ):
        """Read the costs of CMT's config.

        Args:
            cls_cost: ``dict(type='FocalLossCost', weight, alpha=.25, gamma=2)``.
            reg_cost: ``dict(type='BBox3DL1Cost', weight)``.
            code_weights: ten factors, in the order of ``box_coder.CODES``.
            iou_cost: published configs have one with weight 0; another weight is refused.

        Raises:
            ValueError: a cost that is not CMT's, or an unknown key.
        """
        if iou_cost is not None and iou_cost.get("weight", 1.0) != 0:
            raise ValueError(
                f"assigner.iou_cost: CMT matches without IoU; expected weight 0, got {dict(iou_cost)}"
            )
        focal = read_cost(
            "assigner.cls_cost", cls_cost, "FocalLossCost", {"weight": 1.0, "alpha": 0.25, "gamma": 2.0}
        )
        self.cls_weight, self.alpha, self.gamma = focal["weight"], focal["alpha"], focal["gamma"]
        self.reg_weight = read_cost("assigner.reg_cost", reg_cost, "BBox3DL1Cost", {"weight": 1.0})["weight"]
        self.code_weights = tuple(float(w) for w in code_weights)

    def costs(self, codes: Tensor, logits: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted classification cost and box cost of one sample.

        Args:
            codes: (L, Q, 10) predictions of L decoder layers.
            logits: (L, Q, C).
            target: (M, 10) codes of the boxes.
            labels: (M,).

        Returns:
            Two (L, Q, M) tensors.
        """
        weights = constant(self.code_weights, codes.device)[:MATCHED_CODES]
        predicted, expected = codes[..., :MATCHED_CODES] * weights, target[:, :MATCHED_CODES] * weights
        distance = torch.cdist(predicted, expected.expand(len(codes), -1, -1), p=1)
        return focal_cost(
            logits, labels, self.alpha, self.gamma
        ) * self.cls_weight, distance * self.reg_weight

    @torch.no_grad()
    def cost_matrix(
        self, codes: Tensor, logits: Tensor, targets: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Tensor:
        """Return all costs, (L, Q, boxes of all samples); arguments as for ``assign``."""
        samples = zip(codes.float().unbind(1), logits.float().unbind(1), targets, labels, strict=True)
        return torch.cat([torch.add(*self.costs(*sample)) for sample in samples], dim=-1)

    def match(self, cost: Tensor, counts: Sequence[int]) -> list[list[Matching]]:
        """Match every layer of every sample.

        Args:
            cost: what ``cost_matrix`` returned, on the CPU.
            counts: number of boxes of each sample.

        Returns:
            Matchings by ``[layer][sample]``. All boxes are matched, unless there are fewer queries.

        Raises:
            FloatingPointError: a cost is not finite.
        """
        from scipy.optimize import linear_sum_assignment  # half a second that lint need not wait for

        per_sample = torch.split(cost, list(counts), dim=-1)
        for b, part in enumerate(per_sample):
            # NumPy, because PyTorch wakes a thread per core, which took 5 ms a sample on a busy machine.
            if not np.isfinite(part.numpy()).all():
                raise FloatingPointError(
                    f"matching: the cost of sample {b} is not finite; "
                    "its ground truth or the predictions hold NaN or inf"
                )
        return [
            [
                Matching(*map(torch.from_numpy, linear_sum_assignment(part[layer].numpy())))
                for part in per_sample
            ]
            for layer in range(len(cost))
        ]

    def assign(
        self, codes: Tensor, logits: Tensor, targets: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[list[Matching]]:
        """Match every layer of every sample; all costs are copied to the host together.

        Args:
            codes: (L, B, Q, 10).
            logits: (L, B, Q, C).
            targets: per sample (M, 10).
            labels: per sample (M,).

        Returns:
            See ``match``.
        """
        cost = self.cost_matrix(codes, logits, targets, labels)
        return self.match(cost.cpu(), [len(label) for label in labels])


def read_cost(where: str, cfg: dict | ConfigDict, kind: str, defaults: dict[str, float]) -> dict[str, float]:
    """Read ``dict(type=kind, **numbers)`` of a config, with defaults.

    Raises:
        ValueError: another type, or an unknown key.
    """
    given = dict(cfg)
    if given.pop("type", kind) != kind:
        raise ValueError(f"{where}: expected type {kind!r}, got {cfg['type']!r}")
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; {kind} reads {', '.join(defaults)}")
    return {**defaults, **{key: float(value) for key, value in given.items()}}
