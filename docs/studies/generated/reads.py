"""Where do the queries of a detector read? For weights that may not have learned to.

Runs one validation frame of a training through its detector, in single precision. Prints how large the keys
are, and for each layer of the decoder how much of the attention is on BEV cells, how much within 4 m of the
query, and how much what is read differs from query to query.

    PYTHONPATH=$PWD python docs/studies/generated/reads.py pretrain_r50 WEIGHTS.safetensors
"""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.recipes.registry import recipe
from operators.grid import LIDAR
from pipeline.detector.head.cmt_head import CmtAqrHead
from pipeline.detector.transformer.site_attention import SiteAttention
from pipeline.evaluation.evaluator import ValidationSplit
from pipeline.evaluation.inference import Predictor
from pipeline.training.setup import build_detector

NEAR_M = 4.0
EVERY = 9
"""One query in so many is looked at."""


def main() -> None:
    """Print a line for each layer, and one for each sensor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="of a training, such as pretrain_r50")
    parser.add_argument("weights")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    settings = replace(recipe(asked.recipe).trials[0], init_checkpoint=asked.weights, device=asked.device)
    model = build_detector(settings, torch.device(asked.device))
    detector, frame = Predictor(model, model.image_size), ValidationSplit(settings).middle
    with watched(model.pts_bbox_head):
        detector.run(detector.prepare([frame]))


@contextmanager
def watched(head: CmtAqrHead) -> Iterator[None]:
    """Print what the decoder of ``head`` reads, within."""
    make_memory, attend, memories = head.make_memory, SiteAttention._attend, []

    def made(*given: Any) -> Any:
        memories.append(make_memory(*given))
        print_keys(memories[-1])
        return memories[-1]

    def watch(site: SiteAttention, query: Tensor, key: Tensor, value: Tensor, bias: Any) -> Tensor:
        out = attend(site, query, key, value, bias)
        if site.site.startswith("decoder") and site.site.endswith(".cross"):
            share, near = on_bev(head, site, memories[-1].grid, query[:, ::EVERY], key)
            differs = out[0].std(dim=0).mean()
            print(f"{site.site}: on BEV {share:.3f}, near {near:.3f}, differs by {differs:.3f}", flush=True)
        return out

    head.make_memory, SiteAttention._attend = made, watch  # type: ignore[method-assign]
    try:
        yield
    finally:
        head.make_memory, SiteAttention._attend = make_memory, attend  # type: ignore[method-assign]


def on_bev(
    head: CmtAqrHead, site: SiteAttention, grid: Any, query: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the shares of the attention, without a bias, on BEV cells and within ``NEAR_M`` of the query."""
    q, k, _ = (site._heads(x) for x in site.attn.qkv(query, key, key))
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)[0]
    (bev,) = (first for _, first in grid.groups if first.modality == LIDAR)
    low, high = head.point_range[:2], head.point_range[3:5]
    places = head.reference_points.weight[::EVERY, :2].clamp(0, 1) * (high - low) + low
    y, x = torch.meshgrid(
        *((torch.arange(cells, device=low.device) + 0.5) / cells for cells in (bev.rows, bev.cols)),
        indexing="ij",
    )
    cells = torch.stack([x, y], dim=-1).flatten(0, 1) * (high - low) + low
    of_bev = weights[..., : bev.num_keys]
    return of_bev.sum(-1).mean(), (of_bev * (torch.cdist(places, cells) < NEAR_M)).sum(-1).mean()


def print_keys(memory: Any) -> None:
    """Print how large the contents of BEV and of camera cells are."""
    for group, first in memory.grid.groups:
        cells = (group.stop - group.start) * first.num_keys
        part = memory.tokens[0, first.offset : first.offset + cells]
        name = "BEV" if first.modality == LIDAR else "camera"
        print(f"{name} cells: mean {part.mean():.3f}, standard deviation {part.std():.3f}")


if __name__ == "__main__":
    main()
