"""Denoising queries: ground truth with noise, from which the decoder must recover the ground truth.

From DN-DETR (arXiv 2203.01305) in the variant of CMT: only the centre gets noise, and the class of a centre
that moved too far is background. They are used in training only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from operators import DenseBias
from pipeline.detector.acceleration.async_transfer import upload
from pipeline.detector.head.targets import BOX_SIZE, NOTHING, Targets

UNIT_BALL_SHARE = 3.14159 / 6  # volume of a ball of radius 1 divided by that of the noise cube; CMT's digits

MATCHING, PADDING = -1, -2
"""Group numbers of matching queries and of padding slots."""


@dataclass(frozen=True)
class DenoisingSettings:
    """Settings of the noise, with the names of CMT's config.

    Attributes:
        scalar: largest number of copies (groups) of the ground truth; 0: no denoising.
        noise_scale: factor on the shift; with 1 a centre can reach the faces of its box.
        noise_trans: metres that are added to half the box size before the shift is drawn.
        split: a query becomes background if its draw in [-1, 1]^3 is longer than this.
        dn_weight: factor on the denoising losses.
    """

    scalar: int = 10
    noise_scale: float = 1.0
    noise_trans: float = 0.0
    split: float = 0.75
    dn_weight: float = 1.0

    @property
    def positive_share(self) -> float:
        """Expected share of queries that keep their class: a ball of radius ``split`` in the cube."""
        return UNIT_BALL_SHARE * self.split**3


@dataclass(frozen=True)
class DenoisingQueries:
    """The denoising queries of a batch: n boxes with noise, in P slots per sample.

    The n rows are ordered by group, then sample, then box.

    Attributes:
        groups: number of copies of the ground truth.
        slots_per_group: slots of a group: the largest number of boxes in a sample.
        batch: (n,) sample of each row.
        slot: (n,) slot of each row, in [0, P).
        labels: (n,) class, or ``num_classes`` for background.
        boxes: (n, 9) targets without noise, also of background rows; z at the box centre.
        points: (B, P, 3) centres with noise in [0, 1]; unused slots are 0, 0, 0.
        padding: number of slots after those of the groups; they are a group of their own, and unused.
    """

    groups: int
    slots_per_group: int
    batch: Tensor
    slot: Tensor
    labels: Tensor
    boxes: Tensor
    points: Tensor
    padding: int = 0

    @property
    def num_slots(self) -> int:
        """P: the number of slots per sample, used or not."""
        return self.groups * self.slots_per_group + self.padding

    def padded(self, num_queries: int, multiple: int) -> "DenoisingQueries":
        """Add padding slots until the number of all queries, matching ones included, is a multiple.

        Only padding slots attend to padding slots, and no loss uses them. With fewer different sizes, CUDA
        graphs can be replayed.
        """
        more = -(self.num_slots + num_queries) % multiple
        return replace(self, points=F.pad(self.points, (0, 0, 0, more)), padding=self.padding + more)

    def to(self, device: torch.device) -> "DenoisingQueries":
        """Copy to a device; the host does not wait."""
        tensors = (self.batch, self.slot, self.labels, self.boxes, self.points)
        batch, slot, labels, boxes, points = (upload(x, device) for x in tensors)
        return replace(self, batch=batch, slot=slot, labels=labels, boxes=boxes, points=points)

    def targets(self, samples: int) -> Targets:
        """Return what each slot should predict.

        Args:
            samples: B.

        Returns:
            Targets of B samples with ``num_slots`` places.
        """
        boxes = self.boxes.new_full((samples, self.num_slots, BOX_SIZE), torch.nan)
        labels = self.labels.new_full((samples, self.num_slots), NOTHING)
        boxes[self.batch, self.slot] = self.boxes
        labels[self.batch, self.slot] = self.labels
        return Targets(boxes, labels)

    def membership(self, num_queries: int) -> Tensor:
        """Return the group of every query, (P + num_queries,) int64, as ``blocked`` takes it."""
        group = torch.arange(self.num_slots + num_queries, device=self.points.device) // self.slots_per_group
        group[self.num_slots - self.padding :] = PADDING
        group[self.num_slots :] = MATCHING
        return group

    def blocked(self, num_queries: int) -> Tensor:
        """Return ``denoising.blocked`` of these queries.

        Args:
            num_queries: number of matching queries, which follow the denoising slots.
        """
        return blocked(self.membership(num_queries))


def blocked(group: Tensor) -> Tensor:
    """Return which queries must not attend to which in self-attention.

    Matching queries must not attend to denoising queries, which hold the ground truth. A group must not
    attend to another group. Denoising queries may attend to matching queries.

    Args:
        group: (N,) group of each query, or ``MATCHING``.

    Returns:
        (N, N) bool: True where row must not attend to column.
    """
    query, key = group[:, None], group[None, :]
    return (key != MATCHING) & (query != key)


def denoising_mask(group: Tensor) -> DenseBias:
    """Return ``blocked`` as the mask of self-attention: minus infinity where blocked, else 0."""
    values = torch.zeros((len(group),) * 2, device=group.device)
    return DenseBias(values.masked_fill_(blocked(group), float("-inf"))[None, None])


def num_groups(counts: Sequence[int], num_queries: int, settings: DenoisingSettings) -> int:
    """Return how many noised copies of the ground truth a batch has.

    Args:
        counts: boxes of each sample.
        num_queries: number of matching queries; there are at most so many denoising slots.
        settings: settings of the noise.
    """
    most = max(counts, default=0)
    return min(settings.scalar, num_queries // most) if most else 0


def make_denoising_queries(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_queries: int,
    num_classes: int,
    point_range: Tensor,
    settings: DenoisingSettings,
    rand01: Tensor | None = None,
) -> DenoisingQueries | None:
    """Add noise to the ground truth of a batch.

    Args:
        boxes: per sample (M, 9), z at the box centre, in m; on the host, where this takes less time than to
            launch its kernels.
        labels: per sample (M,).
        num_queries: see ``num_groups``.
        num_classes: label of the background.
        point_range: (6,) x, y, z minima and maxima in m.
        settings: settings of the noise.
        rand01: (n, 3) uniform draws in [0, 1); None: they are drawn from torch's CPU generator.

    Returns:
        The queries, on the host; None if no sample has a box, or if a sample has more boxes than
        ``num_queries``.
    """
    counts = [len(b) for b in boxes]
    groups, most = num_groups(counts, num_queries, settings), max(counts, default=0)
    if groups == 0:
        return None
    clean = torch.cat(list(boxes)).repeat(groups, 1)
    label = torch.cat(list(labels)).repeat(groups)
    batch = torch.cat([torch.full((c,), b) for b, c in enumerate(counts)]).repeat(groups)
    within = torch.cat([torch.arange(c) for c in counts])
    slot = (torch.arange(groups)[:, None] * most + within).flatten()

    draw = 2 * (torch.rand(len(clean), 3) if rand01 is None else rand01).to(clean) - 1
    shift = draw * (clean[:, 3:6] / 2 + settings.noise_trans) * settings.noise_scale
    centre = (clean[:, :3] + shift - point_range[:3]) / (point_range[3:] - point_range[:3])
    points = centre.new_zeros(len(counts), groups * most, 3)
    points[batch, slot] = centre.clamp(0, 1)
    label = torch.where(draw.norm(dim=1) > settings.split, num_classes, label)
    return DenoisingQueries(groups, most, batch, slot, label, clean, points)
