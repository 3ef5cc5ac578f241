"""Measures one version of the code, one request per line of standard input, so that two can take turns.

``measure.py`` starts it with PYTHONPATH set to the version. It uses only what versions before and after the
change have in common.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from versions import answer_requests

from pipeline.config.settings import TrainSettings
from pipeline.data.synthetic.random_frames import stand_in_frame
from pipeline.detector.acceleration.memory_format import convolutions_channels_last, maps_channels_last
from pipeline.detector.build import build_model, load_config
from pipeline.detector.deployment import for_inference, use_graphs
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.evaluation.inference import Predictor
from pipeline.runtime.determinism import deterministic, seed_everything
from pipeline.training.benchmark import named_plans
from pipeline.training.setup import build_train_step

SWEEPS, BOXES, FRAMES = 10, 45, 8
DEVICE = torch.device("cuda")


class Version:
    """A model in training, made-up frames, and what can be measured of them."""

    def __init__(self, config: str, plan: str, batch: int) -> None:
        deterministic(DEVICE, torch.get_num_threads())
        self.config, self.batch = load_config(config), batch
        size = tuple(self.config.model.image_size)
        frames = [stand_in_frame(i, size, BOXES, SWEEPS) for i in range(FRAMES)]
        self.batches = [
            self._batch([frames[(i * batch + j) % FRAMES] for j in range(batch)]) for i in range(FRAMES)
        ]
        self.single = self._batch(frames[:1])
        self.settings = (config, plan)
        self.renew()

    def renew(self) -> None:
        """Build the model and its training anew, with the same weights every time."""
        seed_everything(0)
        config, plan = self.settings
        self.model: Any = build_model(config, (), named_plans(True)[plan], "cuda", "bfloat16").to(DEVICE)
        convolutions_channels_last(self.model)
        settings = TrainSettings(1, self.batch, amp=True, cuda_graphs=True)
        self.trained = build_train_step(self.model.train(), self.config.optim_wrapper, settings)
        self.taken = 0

    def _batch(self, frames: list[Any]) -> dict[str, Any]:
        batch = collate(frames)
        batch["inputs"] = {key: [t.to(DEVICE) for t in value] for key, value in batch["inputs"].items()}
        return batch

    def step(self, factor: float = 0.0) -> float:
        """Train on the next batch and return the loss."""
        index, self.taken = self.taken, self.taken + 1
        seed_everything(0, index)
        measures = self.trained.step(self.batches[index % len(self.batches)], factor)
        return next(m.value for m in measures if m.metric == "loss")

    def steps(self, count: int) -> dict[str, float]:
        """Time steps: wall time of each, with the GPU idle before and after it."""
        return {"step_ms": _timed(self.step, count)}

    def stream(self, count: int) -> dict[str, float]:
        """Time steps one after another, as a trial runs them: wall time of all, divided by their number.

        A version that can, launches the next step before it reads the numbers of the last one.
        """
        launch = getattr(self.trained, "launch", None)
        prepare = getattr(self.trained, "prepare", lambda batch: batch)
        torch.cuda.synchronize()
        begun, late = time.perf_counter(), None
        for index in range(count):
            seed_everything(0, index)
            batch = self.batches[index % len(self.batches)]
            if launch is None:
                self.trained.step(batch, 0.0)
                torch.cuda.synchronize()  # as the trial's clock did
                continue
            launched = launch(prepare(batch), 0.0)
            if late is not None:
                late.read()
            late = launched
        torch.cuda.synchronize()
        return {"stream_ms": 1e3 * (time.perf_counter() - begun) / count}

    def busy(self) -> dict[str, float]:
        """Profile three steps: time in which the GPU runs a kernel or a copy, of one step."""
        return {"busy_ms": _busy(self.step, 3)}

    def trunk(self) -> dict[str, float]:
        """Run what is frozen, part by part: GPU time (kernels and copies) of each."""
        prepared = self.model.data_preprocessor(self.batches[0], True)["inputs"]
        images = maps_channels_last(prepared["imgs"].flatten(0, 1))
        model, points = self.model, prepared["points"]
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            voxels = model.pts_voxel_layer(points)
            features = model.pts_voxel_encoder(voxels.points, voxels.counts, voxels.coords)
            parts: dict[str, Callable[[], object]] = {
                "images": lambda: model.img_backbone(images),
                "voxels": lambda: model.pts_voxel_encoder(*vars(model.pts_voxel_layer(points)).values()),
                "sparse": lambda: model._encode_sparsely(features, voxels.coords, len(points)),
            }
            found = {}
            for name, part in parts.items():
                part()
                found[f"{name}_gpu_ms"] = _busy(part, 3, union=False)
                found[f"{name}_ms"] = _timed(part, 7)
        return {**found, "trunk_gpu_ms": sum(found[f"{name}_gpu_ms"] for name in parts)}

    def own(self, count: int) -> dict[str, float]:
        """Time what an arm does by itself: head, matching, losses, backward pass, clipping, optimiser.

        Its features are computed once. ``own_host_ms`` is the time in which the host does not wait.
        """
        model, begun, waits = self.model, [0.0], [0.0]
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            prepared = model.data_preprocessor(self.batches[0], True)
            kept = [f.detach() for f in model.extract_feat(prepared["inputs"])]

        def features(_: Any) -> Any:
            torch.cuda.synchronize()
            begun[0] = time.perf_counter()
            return tuple(f.clone().requires_grad_() for f in kept)

        model.extract_feat = features
        walls, hosts = [], []
        with _counting(waits):
            for i in range(count + 3):
                waits[0] = 0.0
                seed_everything(0, 0)
                self.trained.step(self.batches[0], 0.0)
                returned = time.perf_counter()
                host = returned - begun[0] - waits[0]
                torch.cuda.synchronize()
                if i >= 3:
                    walls.append(1e3 * (time.perf_counter() - begun[0]))
                    hosts.append(1e3 * host)
        busy = _busy(lambda: self.trained.step(self.batches[0], 0.0), 3)
        del model.extract_feat
        return {
            "own_ms": statistics.median(walls),
            "own_host_ms": statistics.median(hosts),
            "own_busy_ms": busy,
        }

    def losses(self, count: int) -> dict[str, Any]:
        """Train from fresh weights; return every loss, and what rounding does to the predictions then."""
        self.renew()
        curve = [self.step(min(1.0, (i + 1) / 10)) for i in range(count)]
        return {"losses": curve, **self.accuracy()}

    def accuracy(self) -> dict[str, float]:
        """Compare the predictions with those of a sparse encoder in single precision, in metres.

        Empty for a version without the switch. The head runs in bfloat16 both times.
        """
        encoder = self.model.pts_middle_encoder
        if not hasattr(encoder, "half_when_frozen"):
            return {}
        self.model.eval()
        found = []
        for half in (False, True):
            encoder.half_when_frozen = half
            with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
                prepared = self.model.data_preprocessor(self.batches[0], False)
                bev = self.model.point_features(prepared["inputs"]["points"]).float()
                output = self.model(**prepared, mode="tensor").matching
            found.append((bev, output.codes[-1].float(), output.logits[-1].float().sigmoid()))
        self.model.train()
        (bev, codes, scores), (half_bev, half_codes, half_scores) = found
        moved = (half_codes[..., [0, 1, 4]] - codes[..., [0, 1, 4]]).norm(dim=-1).flatten()
        return {
            "half_bev_error": float((half_bev - bev).norm() / bev.norm()),
            "half_centre_median_m": float(moved.median()),
            "half_centre_99_m": float(moved.quantile(0.99)),
            "half_score_largest": float((half_scores - scores).abs().max()),
        }

    def detect(self, count: int) -> dict[str, float]:
        """Time detection at batch 1; nothing trains after it."""
        for_inference(self.model, torch.bfloat16)
        detector = Predictor(use_graphs(self.model), self.model.image_size, amp=True)
        for _ in range(6):
            detector.run(self.single)
        self.detect = lambda count: {"detect_ms": _timed(lambda: detector.run(self.single), count)}  # type: ignore[method-assign]
        return self.detect(count)


class _counting:
    """Adds up the time that the host waits for the GPU, in ``waits``."""

    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def __enter__(self) -> None:
        owners = (
            (torch.cuda.Event, "synchronize"),
            (torch.cuda.Stream, "synchronize"),
            (torch.Tensor, "tolist"),
        )
        self._kept = [(owner, name, getattr(owner, name)) for owner, name in owners]
        for owner, name, function in self._kept:
            setattr(owner, name, self._timed(function))

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self._kept:
            setattr(owner, name, function)

    def _timed(self, function: Any) -> Any:
        def timed(*given: Any) -> Any:
            begun = time.perf_counter()
            result = function(*given)
            self._waits[0] += time.perf_counter() - begun
            return result

        return timed


def _timed(call: Callable[[], object], count: int) -> float:
    """Return the median wall time of a call in ms, the GPU idle before and after it."""
    times = []
    for _ in range(count):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _busy(call: Callable[[], object], count: int, union: bool = True) -> float:
    """Return the time in ms in which the GPU works in one call (``union``), or the sum over all kernels."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in profiler.events()
        if e.device_type == torch.autograd.DeviceType.CUDA
        and not (e.is_user_annotation or e.name.startswith(("site:", "Optimizer.")))
    )
    total, last = 0.0, 0.0
    for begin, end in spans:
        total += max(0.0, end - max(begin, last)) if union else end - begin
        last = max(last, end)
    return total / count / 1e3


def main() -> None:
    """Answer requests such as ``steps 20`` with a line of JSON each."""
    config, plan, batch = sys.argv[1:]
    version = Version(config, plan, int(batch))
    for _ in range(6):
        version.step()
    answer_requests(version)


if __name__ == "__main__":
    main()
