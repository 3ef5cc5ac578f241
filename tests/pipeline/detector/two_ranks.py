"""Run as ``two_ranks.py RANK FOLDER``: one of two processes that share a batch of four samples."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.detector.assign import HungarianAssigner3D
from pipeline.detector.loss import Predictions, SetCriterion

WEIGHTS = [1.0] * 10


def gradients(samples):
    """Gradient of the summed losses with respect to the predictions of the given samples of the batch."""
    torch.manual_seed(0)
    counts = (5, 0, 2, 1)
    boxes = [torch.rand(n, 9) + 0.5 for n in counts]
    labels = [torch.randint(0, 3, (n,)) for n in counts]
    codes, logits = torch.randn(2, 4, 8, 10), torch.randn(2, 4, 8, 3)
    parts = [t[:, samples].clone().requires_grad_() for t in (codes, logits)]
    assigner = HungarianAssigner3D({"weight": 2.0}, {"weight": 0.25}, WEIGHTS)
    criterion = SetCriterion(assigner, {"loss_weight": 2.0}, {"loss_weight": 0.25}, WEIGHTS, 1.0, 0.22)
    losses = criterion(Predictions(*parts), boxes[samples], labels[samples])
    return torch.autograd.grad(sum(losses.values()), parts)


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(gradients(slice(2 * rank, 2 * rank + 2)), folder / f"{rank}.pt")
    dist.destroy_process_group()
