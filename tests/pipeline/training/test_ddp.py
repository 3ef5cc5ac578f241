"""Several processes train what one trains on the joint batch: same plans, same gradients."""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.data.sample import Sample
from pipeline.data.source import Source
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.metrics.rows import read_rows
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, Cohort
from pipeline.training.step import Prepared, TrainStep
from tests.machine import unused_port

Trial = Callable[..., TrialSettings]
NO_BIAS = Plan.of({"aqr.0.cross": "local/sdpa_math", "decoder.*": "none/sdpa_math"})
EXACT = (
    # What a joint batch and its halves do differently: batch norm's statistics, denoising noise, dropout.
    ("optim_wrapper.paramwise_cfg.custom_keys.shared_conv", '{"lr_mult": 0.0}'),
    ("model.pts_bbox_head.denoising.scalar", "0"),
    ("model.pts_bbox_head.transformer.decoder.transformerlayers.attn_cfgs.0.dropout", "0.0"),
    ("model.pts_bbox_head.transformer.decoder.transformerlayers.attn_cfgs.1.dropout", "0.0"),
    ("model.pts_bbox_head.aqr_config.encoder_config.transformerlayers.attn_cfgs.0.dropout", "0.0"),
    ("model.pts_bbox_head.aqr_config.encoder_config.transformerlayers.ffn_cfgs.ffn_drop", "0.0"),
)


class OneBox:
    """Frames with their nearest box alone.

    An untrained model predicts nearly the same for all queries; with several boxes, matchings then cost
    the same to the last bit, and which one is found depends on rounding.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.tokens, self.scenes, self.blocks = source.tokens, source.scenes, source.blocks

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        nearest = np.hypot(*sample.boxes[:, :2].T).argsort()[:1]
        return replace(sample, boxes=sample.boxes[nearest], labels=sample.labels[nearest])


class Rank(LocalSession):
    """A worker of a group."""

    def __init__(self, folder: Path, rank: int, world_size: int, device: str = "cpu") -> None:
        super().__init__(folder, torch.device(device))
        self.rank, self.world_size = rank, world_size


def gradients(settings: TrialSettings, session: Rank, path: Path) -> None:
    """Run one step of a cohort of two and keep gradients, losses and plans instead of assessing."""
    arms = [
        Arm(replace(settings, plan=plan), Rank(session.folder / name, session.rank, session.world_size))
        for name, plan in {"window": settings.plan, "none": NO_BIAS}.items()
    ]
    cohort = Cohort(arms)
    cohort.training_data.source = OneBox(cohort.training_data.source)
    cohort.train()
    found = {
        f"{trainer.arm.session.folder.name}.{name}": parameter.grad
        for trainer in cohort.trainers
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    save_file(found, path)


def work(rank: int, plain: Mapping[str, object], folder: Path, port: int, workers: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    calls, exchange, trunk = [], dist.all_reduce, CmtDetector.run_trunk

    def spied_exchange(numbers: Tensor, **given: object) -> object:
        calls.extend(["divisors"] if len(numbers) == 3 else [])
        return exchange(numbers, **given)

    def spied_trunk(model: CmtDetector, inputs: dict[str, object]) -> object:
        calls.append("trunk")
        return trunk(model, inputs)

    dist.all_reduce, CmtDetector.run_trunk = spied_exchange, spied_trunk  # type: ignore[assignment]
    gradients(
        TrialSettings.from_dict(dict(plain)),
        Rank(folder / "several", rank, workers),
        folder / f"{rank}.safetensors",
    )
    (folder / f"{rank}.json").write_text(json.dumps(calls))
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_average_to_the_joint_gradient(trial: Trial, tmp_path: Path, workers: int) -> None:
    def settings(batch_size: int) -> TrialSettings:
        made = trial(steps=1, batch_size=batch_size, warmup_steps=0, checkpoint_every=1)
        return TrialSettings.from_dict({**made.to_dict(), "overrides": [*made.overrides, *EXACT]})

    # a forked child has the mm libraries loaded; where CUDA is, autograd forbids forking
    method = "spawn" if torch.cuda.is_available() else "fork"
    given = (settings(1).to_dict(), tmp_path, unused_port(), workers)
    mp.start_processes(work, given, nprocs=workers, start_method=method)
    gradients(settings(workers), Rank(tmp_path / "one", 0, 1), tmp_path / "joint.safetensors")
    joint = load_file(tmp_path / "joint.safetensors")
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(workers)]
    for rank in range(workers):  # once for both arms, and before the step's work
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == ["divisors", "trunk"]
    assert all(set(found) == set(joint) for found in ranks)
    for name, expected in joint.items():
        assert all(torch.equal(ranks[0][name], found[name]) for found in ranks), name
        # The same float32 sums in another order: a hundred roundings of 1e-7 of the largest entry. The one
        # entry of a scale is a sum over all queries, a quarter of the sum of the terms' absolute values.
        most = 1e-5 if expected.numel() > 1 else 4e-5
        assert float((ranks[0][name] - expected).abs().max()) <= most * float(expected.abs().max()), name
    for arm in ("window", "none"):
        assert any(name.startswith(f"{arm}.") for name in joint)
        one, several = (
            {r.metric: r for r in read_rows(tmp_path / way / arm / "rows.jsonl")}
            for way in ("one", "several")
        )
        assert one["loss"].plan == several["loss"].plan
        assert several["loss"].value == pytest.approx(one["loss"].value, rel=1e-5)  # float32 sums, as above


def diverge(rank: int, plain: Mapping[str, object], folder: Path, port: int) -> None:
    """Train a cohort of two of which one arm has a loss that is no number, on rank 1 alone."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    settings = TrialSettings.from_dict(dict(plain))
    device = f"cuda:{rank}" if settings.device == "cuda" else "cpu"
    if settings.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if settings.device == "cuda" else "gloo", rank=rank, world_size=2)
    arms = [
        Arm(replace(settings, plan=plan), Rank(folder / name, rank, 2, device))
        for name, plan in {"window": settings.plan, "none": NO_BIAS}.items()
    ]
    told: dict[str, str] = {}
    cohort = Cohort(arms, left=lambda arm, error: told.update({arm.session.folder.name: str(error)}))
    first, calls, losses = id(cohort.trainers[0].train_step), itertools.count(), TrainStep.losses

    def planted(step: TrainStep, prepared: Prepared) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = losses(step, prepared)
        if rank == 1 and id(step) == first and next(calls) == 2:
            parts["loss"] = total = total + math.inf  # its derivative is finite
        return total, parts

    TrainStep.losses = planted  # type: ignore[method-assign]
    cohort.train()
    weights = {name: p.detach().cpu() for name, p in cohort.trainers[0].model.named_parameters()}
    save_file(weights, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(told))
    cohort.trainers.clear()  # freed before the group, see test_training_graph
    dist.destroy_process_group()


def on_devices() -> list[object]:
    needs = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    return ["cpu", pytest.param("cuda", marks=[needs, pytest.mark.gpu])]


@pytest.mark.parametrize("device", on_devices())
def test_an_arm_that_diverges_on_one_worker_leaves_on_both(trial: Trial, tmp_path: Path, device: str) -> None:
    made = trial(steps=5, checkpoint_every=5, log_every=5, device=device, num_workers=2)
    fused = ("optim_wrapper.optimizer.fused", "true")  # a step is read after the next one has been launched
    settings = replace(made, overrides=(*made.overrides, fused))
    method = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(diverge, (settings.to_dict(), tmp_path, unused_port()), nprocs=2, start_method=method)
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert list(told) == ["window"]
        assert "training stopped at step 3 of 5" in told["window"]
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
