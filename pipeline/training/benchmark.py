"""Times one model under several plans on the same stand-in frames: training, inference, memory.

Each plan trains (with the trial's own step: preprocessing, autocast, clipping, optimiser) and then detects
at batch 1. A plan that runs out of memory gets a row that says so. With several rounds of all plans, ratios
are taken within a round, so that a GPU clock that drifts does not decide.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.plan import Plan
from pipeline.config.settings import TrainSettings
from pipeline.data.synthetic.random_frames import stand_in_frame
from pipeline.detector.acceleration.memory_format import convolutions_channels_last
from pipeline.detector.build import build_model, load_config
from pipeline.detector.deployment import (
    for_inference,
    held_by_training_graphs,
    train_through_graphs,
    use_graphs,
)
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.detector.precision import AUTOCAST_DTYPE, attention_dtype, runs_autocast
from pipeline.errors import TrialError
from pipeline.evaluation.inference import Predictor
from pipeline.metrics.memory import PeakMemory, forget
from pipeline.metrics.module_timing import ModuleTimer
from pipeline.metrics.recorder import Measure
from pipeline.metrics.rows import Row, append_rows
from pipeline.metrics.timing import WARMUP_STEPS, StepClock, device_name, latency
from pipeline.metrics.versions import commit, versions
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.training.setup import build_train_step
from pipeline.training.step import TrainStep, loss_of

STUDY = "throughput"
"""Name of the study in the rows."""

LOSS_WINDOW = 5
"""Steps whose mean loss is ``loss_first``, and ``loss_last``."""

RAMP = 10
"""Steps in which the learning rate rises to that of the config, so that fresh weights do not diverge."""


class BenchmarkError(ValueError):
    """A benchmark that cannot run as asked."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What all plans of a benchmark have in common.

    Attributes:
        config: mmengine config.
        device: ``cpu`` or ``cuda``.
        steps: training steps, warm-up included; 0 skips training.
        calls: inference calls timed; 0 skips inference.
        batch: samples per training step.
        frames: different frames; training and inference take them in turn.
        sweeps: LiDAR sweeps per frame.
        boxes: boxes per frame; with ten denoising groups 83 of them make 1730 queries of 900.
        fold: fold batch norms for inference.
        cuda_graphs: detect, and train the head, through CUDA graphs, on a GPU.
        parts: time the modules of the model too.
        rounds: how often all plans run, one after the other; each run starts from the same weights.
        overrides: see ``load_config``.
        seed: of weights, frames and noise.
    """

    config: str
    device: str
    steps: int = 40
    calls: int = 50
    batch: int = 1
    frames: int = 4
    sweeps: int = 10
    boxes: int = 45
    fold: bool = True
    cuda_graphs: bool = True
    parts: bool = False
    rounds: int = 1
    overrides: tuple[tuple[str, str], ...] = ()
    seed: int = 0


def named_plans(cuda: bool) -> dict[str, Plan]:
    """Return the plans that have a name, for a model with AQR.

    ``plain`` is CMT: without a bias, AQR does not run. ``mask`` is ``rects`` with the local mask in AQR.

    Args:
        cuda: with the implementations of a GPU.
    """
    own, free = ("sdpa_efficient", "sdpa_flash") if cuda else ("sdpa_math", "sdpa_math")
    dense = own
    choices = {
        "plain": (f"none/{free}", f"none/{free}"),
        "dense": (f"none/{free}", f"window/{dense}"),
        "rects": (f"none/{free}", "window/rects"),
        "mask": ("local/rects", "window/rects"),
        "dense_mask": (f"local/{dense}", f"window/{dense}"),
    }
    return {
        name: Plan.of({"aqr.*": aqr, "decoder.*.self": f"none/{own}", "decoder.*.cross": cross})
        for name, (aqr, cross) in choices.items()
    }


def run_benchmark(bench: BenchmarkSettings, plans: Mapping[str, Plan | None], folder: Path) -> list[Row]:
    """Time every plan; rows go to ``folder / "rows.jsonl"`` as they are measured.

    Args:
        bench: what the plans have in common.
        plans: name -> plan; None is what the config says.
        folder: made if it is not there; rows that are there are not overwritten.

    Returns:
        The rows; those of round i have the seed of the benchmark plus i.

    Raises:
        BenchmarkError: the folder holds rows, or a training diverges.
        pipeline.config.plan.PlanError: a plan does not fit the model; before anything is timed.
    """
    path = folder / "rows.jsonl"
    if path.exists():
        raise BenchmarkError(f"{path} is there already; name another folder with --out")
    device = torch.device(bench.device)
    amp = runs_autocast(load_config(bench.config, bench.overrides).optim_wrapper, bench.device)
    fresh = fresh_model(bench, amp)
    for plan in plans.values():  # a plan that does not fit is refused before another one has run for minutes
        _planned(fresh, plan, bench, amp)
    deterministic(device, torch.get_num_threads())
    folder.mkdir(parents=True, exist_ok=True)
    batches = made_up_frames(bench, device)
    rows: list[Row] = []
    for i in range(bench.rounds):
        lap = replace(bench, seed=bench.seed + i)
        for name, plan in plans.items():
            model = _planned(fresh, plan, bench, amp).to(device)
            common = _common(lap, name, str(model.plan), device)
            for kind, measure in (("train", _train), ("inference", _infer)):
                measures = _run_in_memory(kind, partial(measure, lap, model, batches, amp), device)
                new = [replace(common, **vars(m), step=bench.steps, time=time.time()) for m in measures]
                append_rows(path, new)
                rows += new
            del model
            forget(device)
    return rows


def steps_of(bench: BenchmarkSettings, plan: Plan | None) -> Iterator[tuple[str, Callable[[], object], bool]]:
    """Yield a training step and a detection for a profiler: (name, call, whether on a GPU)."""
    device = torch.device(bench.device)
    amp = runs_autocast(load_config(bench.config, bench.overrides).optim_wrapper, bench.device)
    deterministic(device, torch.get_num_threads())
    batches = made_up_frames(bench, device)
    model = _planned(fresh_model(bench, amp), plan, bench, amp).to(device)
    train_step = train_step_of(bench, model, amp)
    batch = joined([batches[i % len(batches)] for i in range(bench.batch)])
    yield "training step", lambda: train_step.step(batch, 0.0), device.type == "cuda"
    detector = _detector(bench, model, amp)
    yield "detection", lambda: detector.run(batches[0]), device.type == "cuda"


def train_step_of(bench: BenchmarkSettings, model: Any, amp: bool) -> TrainStep:
    """Make what trains a trial, of a model on its device."""
    if bench.device == "cuda":
        convolutions_channels_last(model)
    wrapper = load_config(bench.config, bench.overrides).optim_wrapper
    train = TrainSettings(bench.steps, bench.batch, amp=amp, cuda_graphs=bench.cuda_graphs)
    return build_train_step(model.train(), wrapper, train)


def fresh_model(bench: BenchmarkSettings, amp: bool) -> Any:
    """Build the model of a benchmark, on the CPU, with fresh weights."""
    seed_everything(bench.seed)
    return build_model(bench.config, bench.overrides, None, bench.device, attention_dtype(amp))


def _planned(fresh: Any, plan: Plan | None, bench: BenchmarkSettings, amp: bool) -> Any:
    """Return a copy of a model under a plan; building another model would take seconds."""
    model = copy.deepcopy(fresh)
    if plan is not None:
        model.apply_plan(plan, bench.device, attention_dtype(amp))
    return model


def made_up_frames(bench: BenchmarkSettings, device: torch.device) -> list[dict[str, Any]]:
    """Make single-frame batches whose images and points are on the device."""
    size = load_config(bench.config, bench.overrides).model.image_size
    made = []
    for i in range(bench.frames):
        batch = collate([stand_in_frame(bench.seed + i, (size[0], size[1]), bench.boxes, bench.sweeps)])
        batch["inputs"] = {key: [t.to(device) for t in value] for key, value in batch["inputs"].items()}
        made.append(batch)
    return made


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Join single-frame batches into one."""
    inputs = {key: [b["inputs"][key][0] for b in batches] for key in batches[0]["inputs"]}
    return {"inputs": inputs, "data_samples": [b["data_samples"][0] for b in batches]}


def _run_in_memory(
    kind: str, measure: Callable[[PeakMemory], list[Measure]], device: torch.device
) -> list[Measure]:
    """Measure training or inference; if memory runs out, that is what was measured.

    Args:
        kind: ``train`` or ``inference``; prefix of the metrics.
        measure: runs it.
        device: where it runs.
    """
    memory = PeakMemory(device)
    try:
        return measure(memory)
    except torch.OutOfMemoryError:
        return [Measure(f"{kind}_out_of_memory", "", 1.0), memory.measure(kind)]


def _train(
    bench: BenchmarkSettings, model: Any, batches: list[dict[str, Any]], amp: bool, memory: PeakMemory
) -> list[Measure]:
    """Train; return step time, samples per second, peak memory, and loss at the start and at the end."""
    if not bench.steps:
        return []
    device = torch.device(bench.device)
    train_step = train_step_of(bench, model, amp)
    clock, losses = _steps(bench, train_step, batches, memory)
    ends = (("loss_first", losses[:LOSS_WINDOW]), ("loss_last", losses[-LOSS_WINDOW:]))
    timed = [m for m in clock.measures(bench.batch) if m.metric != "data_wait_ms"]
    measures = [*timed, memory.measure("train", held_by_training_graphs(model))]
    measures += [Measure(name, "", float(np.mean(values)), n=len(values)) for name, values in ends]
    train_through_graphs(model, False)
    if bench.parts:  # again without graphs: a replayed graph has no modules
        parts = ModuleTimer(model, device)
        _steps(bench, train_step, batches, memory)
        measures += parts.measures("train")
    return measures


def _steps(
    bench: BenchmarkSettings, train_step: TrainStep, batches: list[dict[str, Any]], memory: PeakMemory
) -> tuple[StepClock, list[float]]:
    """Train; return the times and the losses."""
    clock, losses = StepClock(torch.device(bench.device)), []
    for step in range(bench.steps):
        batch = joined([batches[(step * bench.batch + i) % len(batches)] for i in range(bench.batch)])
        seed_everything(bench.seed, step)
        if step == WARMUP_STEPS:
            memory.settle()
        clock.begin()
        clock.fed()
        try:
            losses.append(loss_of(train_step.step(batch, min(1.0, (step + 1) / RAMP))))
        except (TrialError, FloatingPointError) as error:
            raise BenchmarkError(f"training stopped at step {step + 1} of {bench.steps}: {error}") from error
        clock.end()
    return clock, losses


def _infer(
    bench: BenchmarkSettings, model: Any, batches: list[dict[str, Any]], amp: bool, memory: PeakMemory
) -> list[Measure]:
    """Detect at batch 1; return latency until the boxes are on the host, frames per second, peak memory."""
    if not bench.calls:
        return []
    device = torch.device(bench.device)
    model.zero_grad(set_to_none=True)
    detector = _detector(bench, model, amp)
    times = latency(lambda i: detector.run(batches[i % len(batches)]), device, bench.calls)
    fps = Measure("inference_frames_per_s", "frames/s", 1e3 / times[0].value, n=times[0].n)
    measures = [*times, fps, memory.measure("inference")]
    if bench.parts:  # again without graphs: a replayed graph has no modules
        parts = ModuleTimer(use_graphs(model, False).eval(), device)
        latency(lambda i: detector.run(batches[i % len(batches)]), device, bench.calls)
        measures += parts.measures("inference")
    return measures


def _detector(bench: BenchmarkSettings, model: Any, amp: bool) -> Predictor:
    """Make a model ready to detect, as the settings say."""
    if bench.fold:
        for_inference(model, AUTOCAST_DTYPE if amp else None)
    return Predictor(use_graphs(model, bench.cuda_graphs), model.image_size, amp)


def _common(bench: BenchmarkSettings, name: str, plan: str, device: torch.device) -> Row:
    return Row(
        study=STUDY,
        trial=f"{name}@{Path(bench.config).stem}_b{bench.batch}",
        plan=plan,
        metric="",
        unit="",
        value=0.0,
        seed=bench.seed,
        device=device_name(device),
        versions=versions(),
        commit=commit(),
    )
