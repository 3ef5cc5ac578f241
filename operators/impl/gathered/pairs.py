"""The pairs of a query and a key inside one of its windows, as lists."""

from dataclasses import dataclass

import torch
from torch import Tensor

from operators.forms import RectsForm


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of a batch, N in number, ordered by sample, query, segment, row and column.

    Attributes:
        rect: (N,) int64, index of the pair's rect among those of the batch, (B, Q, S) flattened.
        key: (N,) int64, index of the key, 0..K-1.
        within: (N,) row and (N,) column of the key in its rect, int32.
        corner: (B * Q * S, 2) int32, first row and first column of every rect.
        per_query: (B * Q,) int64, number of pairs of every query.
        queries: Q.
        keys: K.
    """

    rect: Tensor
    key: Tensor
    within: tuple[Tensor, Tensor]
    corner: Tensor
    per_query: Tensor
    queries: int
    keys: int

    @classmethod
    def of(cls, form: RectsForm) -> "Pairs":
        """List the pairs inside the rects of a form."""
        grid, device = form.grid, form.rects.device
        batch, queries, segments, _ = form.rects.shape
        top, bottom, left, right = _on_the_map(form).flatten(0, 2).unbind(-1)
        width = (right - left + 1).clamp(min=0)
        area = (bottom - top + 1).clamp(min=0) * width
        offset, cols = (
            torch.tensor(sizes, dtype=torch.int32, device=device).repeat(batch * queries)
            for sizes in ([s.offset for s in grid.segments], [s.cols for s in grid.segments])
        )
        rect = torch.repeat_interleave(torch.arange(len(area), device=device, dtype=torch.int32), area)
        begin = (area.cumsum(0) - area).to(torch.int32)
        place = torch.arange(len(rect), device=device, dtype=torch.int32) - begin[rect]
        row = place // width[rect]  # all in 32 bits, because a division in 64 takes three times as long
        col = place - row * width[rect]
        key = (offset + top * cols + left)[rect] + row * cols[rect] + col
        per_query = area.view(batch * queries, segments).sum(dim=1)
        corner = torch.stack([top, left], dim=-1)
        return cls(rect.long(), key.long(), (row, col), corner, per_query, queries, grid.num_keys)

    @property
    def cell(self) -> Tensor:
        """Row and column of every pair's key in its segment, (N, 2) int32."""
        return self.corner[self.rect] + torch.stack(self.within, dim=-1)

    @property
    def query(self) -> Tensor:
        """The query of every pair, (N,) int64: an index into (B, Q) flattened."""
        every = torch.arange(len(self.per_query), device=self.key.device)
        return torch.repeat_interleave(every, self.per_query)

    @property
    def sample(self) -> Tensor:
        """The sample of every pair, (N,) int64."""
        each = self.per_query.view(-1, self.queries).sum(dim=1)
        return torch.repeat_interleave(torch.arange(len(each), device=each.device), each)

    @property
    def bounds(self) -> list[int]:
        """Where the pairs of every query begin, and where those of the last end: B * Q + 1 numbers."""
        return [0, *self.per_query.cumsum(0).tolist()]

    def slots(self) -> tuple[Tensor, Tensor]:
        """Return the pairs as a table with one row per query.

        Returns:
            Keys (B * Q, W) int64, an index into (B, K) flattened, 0 in an empty slot; and (B * Q, W) bool,
            whether the slot is filled. W is the largest number of pairs of a query, at least 1.
        """
        total, widest = len(self.per_query), max(int(self.per_query.max()), 1)
        slot = torch.arange(widest, device=self.key.device)
        filled = slot < self.per_query[:, None]
        table = self.key.new_zeros(total, widest)
        table[filled] = self.key + self.sample * self.keys
        return table, filled


def _on_the_map(form: RectsForm) -> Tensor:
    """Return the rects, cut at the borders of their segments: beyond them there is no key."""
    last = [[s.rows - 1, s.rows - 1, s.cols - 1, s.cols - 1] for s in form.grid.segments]
    most = torch.tensor(last, dtype=form.rects.dtype, device=form.rects.device)
    least = most.new_tensor([0, -1, 0, -1])  # a rect that ends before the map holds no key
    return torch.minimum(torch.maximum(form.rects, least), most + most.new_tensor([1, 0, 1, 0]))
