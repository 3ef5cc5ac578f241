"""Hungarian matching of queries and ground-truth boxes (DETR, arXiv 2005.12872)."""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.config import ConfigDict
from torch import Tensor

from pipeline.detector.acceleration.async_transfer import constant, download, upload
from pipeline.detector.head.box_coder import CODES, encode_boxes
from pipeline.detector.head.targets import Targets

FOCAL_EPS = 1e-12  # added inside the logarithms of the focal cost, as in mmdet
MATCHED_CODES = 8  # x, y, z, sizes and yaw; the cost does not include the velocity (CMT)


def focal_cost(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss (arXiv 1708.02002) of a positive query minus that of a negative one.

    Args:
        logits: (..., Q, C).
        labels: (..., M) classes.
        alpha: weight of positives.
        gamma: focusing exponent.

    Returns:
        (..., M, Q).
    """
    p = logits.sigmoid()
    negative = -(1 - p + FOCAL_EPS).log() * (1 - alpha) * p.pow(gamma)
    positive = -(p + FOCAL_EPS).log() * alpha * (1 - p).pow(gamma)
    return (positive - negative).mT.take_along_dim(labels[..., None], dim=-2)


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
            ValueError: a cost that is not CMT's, an unknown key, or another number of factors.
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
        if len(code_weights) != len(CODES):
            raise ValueError(
                f"assigner.code_weights: expected {len(CODES)} numbers ({', '.join(CODES)}), got "
                f"{code_weights}"
            )
        self.code_weights = tuple(float(w) for w in code_weights)

    def costs(self, codes: Tensor, logits: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted classification cost and box cost.

        Args:
            codes: (..., Q, 10) predictions.
            logits: (..., Q, C).
            target: (..., M, 10) codes of the boxes.
            labels: (..., M).

        Returns:
            Two (..., M, Q) tensors.
        """
        weights = constant(self.code_weights, codes.device)[:MATCHED_CODES]
        predicted, expected = codes[..., :MATCHED_CODES] * weights, target[..., :MATCHED_CODES] * weights
        distance = (expected[..., :, None, :] - predicted[..., None, :, :]).abs().sum(dim=-1)
        focal = focal_cost(logits, labels, self.alpha, self.gamma)
        return focal * self.cls_weight, distance * self.reg_weight

    @torch.no_grad()
    def assign(self, codes: Tensor, logits: Tensor, targets: Targets) -> Tensor:
        """Match every layer of every sample by itself.

        All boxes are matched, unless there are fewer queries. On a GPU the host does not wait, and a cost
        that is not finite counts as a large one.

        Args:
            codes: (L, B, Q, 10).
            logits: (L, B, Q, C).
            targets: B samples of M places.

        Returns:
            (L, B, Q) int64: the place of each query's box, or -1.

        Raises:
            FloatingPointError: a cost is not finite, on a CPU.
        """
        labels = targets.labels.clamp(min=0)[None]
        cost = torch.add(
            *self.costs(codes.float(), logits.float(), encode_boxes(targets.boxes)[None], labels)
        )
        if cost.is_cuda and cost.shape[-2] <= cost.shape[-1]:
            from pipeline.detector.head.assignment_kernel import assign  # compiles, which a CPU cannot

            return assign(cost, targets.counts)
        return upload(match_on_host(*download(cost, targets.counts)), cost.device)


def match_on_host(cost: Tensor, counts: Tensor) -> Tensor:
    """Match every layer of every sample.

    Args:
        cost: (L, B, M, Q), on the CPU.
        counts: (B,) number of boxes of each sample, which are in its first places.

    Returns:
        See ``HungarianAssigner3D.assign``.

    Raises:
        FloatingPointError: a cost is not finite.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that lint need not wait for

    layers, batch, _, queries = cost.shape
    matched = np.full((layers, batch, queries), -1, dtype=np.int64)
    for b, count in enumerate(counts.tolist()):
        part = cost[:, b, :count].numpy()
        # NumPy, because PyTorch wakes a thread per core, which took 5 ms a sample on a busy machine.
        if not np.isfinite(part).all():
            raise FloatingPointError(
                f"matching: the cost of sample {b} is not finite; "
                "its ground truth or the predictions hold NaN or inf"
            )
        for layer in range(layers):
            box, query = linear_sum_assignment(part[layer])
            matched[layer, b, query] = box
    return torch.from_numpy(matched)


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
