"""Noised ground truth fed to the decoder, which has to undo the noise.

From DN-DETR (arXiv 2203.01305) in the variant of CMT: what is noised is the centre alone, and a
centre that moved too far has to be called background. Only training uses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from operators import DenseBias
from pipeline.detector.acceleration.async_transfer import upload

SLOT_RADIUS_VOLUME = 3.14159 / 6  # share of the noise cube that a ball of radius 1 fills; CMT's digits of pi

MATCHING, PADDING = -1, -2
"""In the place of a group: a matching query, a slot that pads."""


@dataclass(frozen=True)
class DenoisingSettings:
    """How ground truth is noised; names of CMT's config.

    Attributes:
        scalar: most copies (groups) of the ground truth; 0 switches denoising off.
        noise_scale: factor on the shift; 1 reaches the faces of the box.
        noise_trans: metres added to half the box size before the shift is drawn.
        split: length of the draw in [-1, 1]^3 beyond which the query becomes background.
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
        return SLOT_RADIUS_VOLUME * self.split**3


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised ground truth of a batch; n noised boxes in all, P slots per sample.

    Rows run over group, then sample, then box.

    Attributes:
        groups: copies of the ground truth.
        slots_per_group: slots of a group = most boxes in a sample.
        batch: (n,) sample of each row.
        slot: (n,) slot of each row, in [0, P).
        labels: (n,) class, or ``num_classes`` for background.
        boxes: (n, 9) clean targets, also of background rows; z at the box centre.
        points: (B, P, 3) noised centres in [0, 1]; unused slots are 0, 0, 0.
        padding: slots after those of the groups; a group of their own, of which none is used.
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
        """P: slots per sample, used or not."""
        return self.groups * self.slots_per_group + self.padding

    def padded(self, num_queries: int, multiple: int) -> "DenoisingQueries":
        """Add slots until there are a multiple of so many queries, the matching ones counted.

        Nobody but themselves looks at what is added, and no loss does. Sizes that recur let a graph be
        replayed.
        """
        more = -(self.num_slots + num_queries) % multiple
        return replace(self, points=F.pad(self.points, (0, 0, 0, more)), padding=self.padding + more)

    def membership(self, num_queries: int) -> Tensor:
        """Return which group a query is in, (P + num_queries,) int64: see ``blocked``."""
        group = torch.arange(self.num_slots + num_queries, device=self.points.device) // self.slots_per_group
        group[self.num_slots - self.padding :] = PADDING
        group[self.num_slots :] = MATCHING
        return group

    def blocked(self, num_queries: int) -> Tensor:
        """Who may not look at whom in self-attention; see the function of this name.

        Args:
            num_queries: matching queries, which follow the denoising slots.
        """
        return blocked(self.membership(num_queries))


def blocked(group: Tensor) -> Tensor:
    """Tell who may not look at whom in self-attention.

    Matching queries must not see denoising ones, which know the answer; a group must not see
    another. Denoising queries may look at matching queries.

    Args:
        group: (N,) group of each query, or ``MATCHING``.

    Returns:
        (N, N) bool, True = blocked; rows look, columns are looked at.
    """
    looks, seen = group[:, None], group[None, :]
    return (seen != MATCHING) & (looks != seen)


def denoising_mask(group: Tensor) -> DenseBias:
    """Return ``blocked`` as what self-attention takes: minus infinity where blocked."""
    values = torch.zeros((len(group),) * 2, device=group.device)
    return DenseBias(values.masked_fill_(blocked(group), float("-inf"))[None, None])


def make_denoising_queries(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_queries: int,
    num_classes: int,
    point_range: Tensor,
    settings: DenoisingSettings,
    rand01: Tensor | None = None,
) -> DenoisingQueries | None:
    """Noise the ground truth of a batch.

    Args:
        boxes: per sample (M, 9), z at the box centre, in m.
        labels: per sample (M,).
        num_queries: matching queries; there are never more denoising slots than that.
        num_classes: label of the background.
        point_range: (6,) x, y, z minima and maxima in m.
        settings: how to noise.
        rand01: (n, 3) uniform draws in [0, 1); None draws them from torch's CPU generator, so that a
            seed means the same on every device.

    Returns:
        The queries, or None when no sample has a box or a sample has more boxes than queries.
    """
    counts = [len(b) for b in boxes]
    most = max(counts, default=0)
    groups = min(settings.scalar, num_queries // most) if most else 0
    if groups == 0:
        return None
    device = point_range.device
    clean = torch.cat(list(boxes)).repeat(groups, 1)
    label = torch.cat(list(labels)).repeat(groups)
    batch = torch.cat([torch.full((c,), b) for b, c in enumerate(counts)]).repeat(groups)
    batch = upload(batch, device)
    within = torch.cat([torch.arange(c) for c in counts])
    slot = upload((torch.arange(groups)[:, None] * most + within).flatten(), device)

    draw = 2 * upload(torch.rand(len(clean), 3) if rand01 is None else rand01, device).to(clean) - 1
    shift = draw * (clean[:, 3:6] / 2 + settings.noise_trans) * settings.noise_scale
    centre = (clean[:, :3] + shift - point_range[:3]) / (point_range[3:] - point_range[:3])
    points = centre.new_zeros(len(counts), groups * most, 3)
    points[batch, slot] = centre.clamp(0, 1)
    label = torch.where(draw.norm(dim=1) > settings.split, num_classes, label)
    return DenoisingQueries(groups, most, batch, slot, label, clean, points)
