"""Gradients of a cohort on two ranks against one process on the doubled batch: same weights, same frames.

What a joint batch and its halves do differently is taken out first (``EXACT``). What is left are the same
float32 sums in another order, and whatever the mean of the gradients or the losses do wrong.
Used by ``measure.py``.
"""

import csv
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.sample import Sample
from pipeline.data.source import Source
from pipeline.metrics.rows import read_rows, select
from pipeline.runtime.collectives import broadcast
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, Cohort

_HEAD = "model.pts_bbox_head"
_LR = "optim_wrapper.paramwise_cfg.custom_keys"
EXACT = (
    ("optim_wrapper.optimizer.lr", "0.0"),  # the second step has the weights of the first
    ("optim_wrapper.type", '"OptimWrapper"'),  # the config's autocast would round to 8 bits
    # Batch norm: each rank norms by its own frames, which is another function than one norm over both.
    # Frozen norms use their statistics. The backbones' are frozen in the config; this one is not.
    (f"{_LR}.shared_conv", '{"lr_mult": 0.0}'),
    # Draws: dropout, denoising noise and grid masks differ between one batch of two and two of one.
    ("model.use_grid_mask", "false"),
    (f"{_HEAD}.denoising.scalar", "0"),
    (f"{_HEAD}.transformer.decoder.transformerlayers.attn_cfgs.0.dropout", "0.0"),
    (f"{_HEAD}.transformer.decoder.transformerlayers.attn_cfgs.1.dropout", "0.0"),
    (f"{_HEAD}.aqr_config.encoder_config.transformerlayers.attn_cfgs.0.dropout", "0.0"),
    (f"{_HEAD}.aqr_config.encoder_config.transformerlayers.ffn_cfgs.ffn_drop", "0.0"),
)

NECK = ((f"{_LR}.pts_neck", '{"lr_mult": 0.0}'),)
"""The other batch norm that trains, of the full-size models alone."""

LIMIT = 1e-3
"""Difference of an entry, over its tensor's largest, that counts as agreement. Two kernels that add in
another order differ by some 1e-6 each; the rest is what a hundred layers make of it."""

FOUND = "found.pt"
"""File in the folder of each process's cohort."""

KINKS, FLIP = 0.01, 0.1
"""Share of a tensor's entries that may differ by more, and by how much. A ReLU within a rounding of zero lets
a gradient pass or does not, which shows where a tensor has entries for each query: 0.15 % by 0.02 were seen,
and moving the points by a rounding does it too. Without averaging, 97 % differ, by 0.3 and more."""


class OneBox:
    """Frames with their nearest box alone; ``seen`` lists the tokens of those that were read.

    An untrained model predicts nearly the same for all queries; with several boxes, matchings then cost the
    same to the last bit, and which one is found depends on rounding.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.tokens, self.scenes, self.labels = source.tokens, source.scenes, source.labels
        self.blocks = source.blocks
        self.seen: list[str] = []

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        self.seen.append(sample.token)
        nearest = np.hypot(*sample.boxes[:, :2].T).argsort()[:1]
        return replace(sample, boxes=sample.boxes[nearest], labels=sample.labels[nearest])


class Rank(LocalSession):
    """A worker of a group, on a device of its own."""

    def __init__(self, folder: Path, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(folder, device)
        self.rank, self.world_size = rank, world_size


def compare(settings: Mapping[str, TrialSettings], plans: Mapping[str, Plan], out: Path) -> dict[str, Any]:
    """Compare, config after config, in two processes; return what was found per config.

    Args:
        settings: config -> trial of one frame per rank, in float32.
        plans: name -> plan of the arms of a cohort.
        out: folder for one table of tensors per config.
    """
    plain = {config: made.to_dict() for config, made in settings.items()}
    out.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_work, (plain, dict(plans), out, _free_port()), nprocs=2, start_method="spawn")
    asking = json.loads((out / "asking.json").read_text())
    return {config: _judge(out, config, [*plans]) | asking for config in settings}


def _work(rank: int, plain: Mapping[str, Any], plans: Mapping[str, Plan], out: Path, port: int) -> None:
    """Step as one of two ranks; then, on rank 0, alone: on both frames twice, moved a bit, and on one."""
    cuda = next(iter(plain.values()))["device"] == "cuda"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa would drown what is looked for
    torch.set_num_threads(2)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=2)
    for config, made in plain.items():
        session = Rank(out / f"{config}.rank{rank}", rank, 2, device)
        steps(TrialSettings.from_dict(made), session, plans)
    asking = _cost_of_asking(Rank(out, rank, 2, device))
    dist.destroy_process_group()
    if rank:
        return
    (out / "asking.json").write_text(json.dumps(asking))
    for config, made in plain.items():
        half = TrialSettings.from_dict(made)
        joint = replace(half, train=replace(half.train, batch_size=2))
        for name, settings in (("joint", joint), ("again", joint), ("moved", joint), ("half", half)):
            steps(settings, Rank(out / f"{config}.{name}", 0, 1, device), plans, moved=name == "moved")


def steps(settings: TrialSettings, session: Rank, plans: Mapping[str, Plan], moved: bool = False) -> None:
    """Train a cohort for two steps at a rate of 0; leave the gradients of the second, losses and frames.

    On a GPU the second step goes through CUDA graphs, as most steps of a training do. ``FOUND`` in the
    session's folder holds gradients of all arms (``arm.tensor``), their losses and the frames' tokens.

    Args:
        settings: the trial.
        session: where it runs; its folder is made anew.
        plans: name -> plan of the arms.
        moved: every coordinate of the reference points is the next number that float32 has.
    """
    shutil.rmtree(session.folder, ignore_errors=True)
    arms = []
    for name, plan in plans.items():
        own = Rank(session.folder / name, session.rank, session.world_size, session.device)
        arms.append(Arm(replace(settings, plan=plan), own))
    cohort = Cohort(arms)
    for trainer in cohort.trainers if moved else ():
        points = trainer.model.pts_bbox_head.reference_points.weight.data
        points.copy_(torch.nextafter(points, torch.ones_like(points)))
    frames = cohort.training_data.source = OneBox(cohort.training_data.source)
    cohort.train()
    gradients = {
        f"{trainer.arm.session.folder.name}.{name}": weight.grad.cpu()
        for trainer in cohort.trainers
        for name, weight in trainer.model.named_parameters()
        if weight.grad is not None
    }
    session.folder.mkdir(parents=True, exist_ok=True)  # ranks but the first write nothing else
    losses = {}
    for arm in arms if session.rank == 0 else ():
        rows = [*select(read_rows(arm.session.folder / "rows.jsonl"), metric="loss")]
        losses[arm.session.folder.name] = rows[-1].value  # the mean of all ranks
    torch.save({"gradients": gradients, "losses": losses, "frames": frames.seen}, session.folder / FOUND)


def _cost_of_asking(session: Rank) -> dict[str, float]:
    """Time how long the workers of a trial take to agree that no machine was given notice."""
    times = []
    for _ in range(220):
        begun = time.perf_counter()
        broadcast(0, session)
        times.append(time.perf_counter() - begun)
    median, high = np.percentile(times[20:], (50, 95))
    return {"notice_check_us": 1e6 * float(median), "notice_check_p95_us": 1e6 * float(high)}


def _judge(out: Path, config: str, arms: Sequence[str]) -> dict[str, Any]:
    """Compare what the processes left; the tensors go into a table, worst first."""
    names = ("rank0", "rank1", "joint", "again", "moved", "half")
    read = {name: torch.load(out / f"{config}.{name}" / FOUND, weights_only=True) for name in names}
    gradients = {name: held["gradients"] for name, held in read.items()}
    joint = gradients["joint"]
    lines = [
        {"tensor": name, "largest_entry": float(joint[name].abs().max())}
        | {who: relative(gradients[who][name], joint[name]) for who in ("rank0", "again", "moved", "half")}
        | {f"off_{who}": off(gradients[who][name], joint[name]) for who in ("rank0", "moved", "half")}
        for name in joint
    ]
    lines.sort(key=lambda line: -line["rank0"])
    with (out / f"{config}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    for name in names:
        shutil.rmtree(out / f"{config}.{name}")
    same = all(torch.equal(gradients["rank0"][name], gradients["rank1"][name]) for name in joint)
    losses, seen = read["joint"]["losses"], {name: sorted(held["frames"]) for name, held in read.items()}
    worst = lines[0]
    return {
        "arms": {
            arm: max(line["rank0"] for line in lines if line["tensor"].startswith(f"{arm}.")) for arm in arms
        },
        "tensors": len(lines),
        "same_tensors": set(gradients["rank0"]) == set(gradients["rank1"]) == set(joint),
        "both_ranks_hold_the_same_bits": same,
        "two_ranks_against_joint_batch": summary([line["rank0"] for line in lines]),
        "joint_batch_against_itself": summary([line["again"] for line in lines]),
        "points_moved_by_one_rounding": summary([line["moved"] for line in lines]),
        "one_half_against_joint_batch": summary([line["half"] for line in lines]),
        "worst_tensor": worst["tensor"],
        "share_of_its_entries_that_are_off": {who: worst[f"off_{who}"] for who in ("rank0", "moved", "half")},
        "agree": same and all(line["rank0"] <= FLIP and line["off_rank0"] <= KINKS for line in lines),
        "losses_joint": losses,
        "losses_of_ranks": read["rank0"]["losses"],
        "same_frames": sorted(seen["rank0"] + seen["rank1"]) == seen["joint"],
    }


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest entry expected; 0 where both are 0."""
    scale = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def off(found: Tensor, expected: Tensor) -> float:
    """Return the share of entries that differ by more than ``LIMIT`` of the largest entry expected."""
    within = (found - expected).abs() <= LIMIT * expected.abs().max()  # false for what is not a number
    return 1 - float(within.double().mean())


def summary(values: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and maximum."""
    median, high = np.percentile(values, (50, 95))
    return {"median": float(median), "p95": float(high), "max": max(values)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
