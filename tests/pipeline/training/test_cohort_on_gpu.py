"""A cohort on a GPU: streams, graphs in one memory pool, random states, times, memory that runs out."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.detector.acceleration.captured_passes import Recorders
from pipeline.detector.acceleration.training_graph import TrainGraphs
from pipeline.detector.cmt_detector import CmtDetector
from pipeline.errors import TrialMemoryError
from pipeline.runtime.session import LocalSession
from pipeline.training.cohort import Arm, Cohort, run_cohort
from pipeline.training.cohort.arm import ArmTrainer
from pipeline.training.cohort.shared import StepInputs
from pipeline.training.step import TrainStep

Trial = Callable[..., TrialSettings]
DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS = 6
"""A kind of input runs kernel by kernel, is captured, and is replayed from then on."""

LOSSES, GRADIENTS = 1e-2, 5e-2
"""Of their size and norm. Two equal trainings in bfloat16 differ in the order of a few sums; what another arm
had overwritten would be off by its whole size."""

REPEATS, SPREAD, MOST = 3, 3, 0.5
"""Equal trainings that show how far apart such are; how many times as far others may be; the most of all.

On an H200, trainings alone with nothing frozen had gradients 0.118, 0.104 and 0.055 apart under one plan and
0.022, 0.003 and 0.019 under another: atomic sums of the trunk's backward pass have no fixed order. With a
frozen trunk all were equal to the last bit, and so every other course has to be."""

TRAINED_BRANCHES = ("optim_wrapper.paramwise_cfg.custom_keys", "{}")


def plan(biased: int) -> Plan:
    """Return the plan whose decoder layers have a window where ``biased`` has a bit."""
    layers = {f"decoder.{i}.cross": f"{'window' if biased >> i & 1 else 'none'}/sdpa_math" for i in range(3)}
    return Plan.of({"aqr.0.cross": "local/sdpa_math", "decoder.*.self": "none/sdpa_math", **layers})


def settings_of(trial: Trial, *overrides: tuple[str, str]) -> TrialSettings:
    """Return settings with so low a rate that rounding makes no other training of it; with dropout."""
    made = trial(steps=STEPS, device=DEVICE, lr_scale=1e-2, log_every=100, checkpoint_every=100)
    more = ("model.pts_bbox_head.num_query", "100")  # at least as many as boxes: otherwise there is no graph
    return replace(made, overrides=(*made.overrides, more, *overrides))


def arms_in(folder: Path, settings: TrialSettings, numbers: Sequence[int]) -> list[Arm]:
    device = torch.empty(0, device=DEVICE).device
    return [Arm(replace(settings, plan=plan(n)), LocalSession(folder / f"arm{n}", device)) for n in numbers]


class Course:
    """What arms have come to in ``STEPS`` steps: by arm its losses, times, and last gradients."""

    def __init__(self, folder: Path, settings: TrialSettings, numbers: Sequence[int]) -> None:
        self.cohort = Cohort(arms_in(folder, settings, numbers))
        trainers, launched = self.cohort.trainers, []
        with closing(self.cohort.batches(0, STEPS)) as batches:
            for index, samples in enumerate(batches):
                self.cohort.step(index, samples)
                launched.append([trainer._pending.launched for trainer in trainers if trainer._pending])
        self.losses = {
            number: [next(m.value for m in step[i].read() if m.metric == "loss") for step in launched]
            for i, number in enumerate(numbers)
        }
        self.gradients = {n: gradient(trainer) for n, trainer in zip(numbers, trainers, strict=True)}
        for trainer in trainers:
            trainer.read()
        self.times = {n: trainer.times for n, trainer in zip(numbers, trainers, strict=True)}


def gradient(trainer: ArmTrainer) -> Tensor:
    grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return torch.cat(grads).float()


def distances(found: Course, expected: Course, number: int) -> tuple[float, float]:
    """Return how far apart an arm's losses are, of their size, and its last gradients, of their norm."""
    losses, wanted = torch.tensor(found.losses[number]), torch.tensor(expected.losses[number])
    off = float(((losses - wanted).abs() / wanted).max())
    one, other = found.gradients[number], expected.gradients[number]
    return off, float((one - other).norm() / other.norm())


def refuse_another_course(found: Course, equal: Sequence[Course], number: int) -> None:
    """Refuse a course that is another one than ``equal`` are, which differ by rounding, if at all."""
    pairs = [distances(one, other, number) for one, other in combinations(equal, 2)]
    apart = max(away for _, away in pairs)
    off, away = distances(found, equal[0], number)
    print(f"arm {number}: losses {off:.2e}, gradients {away:.2e}; equal ones {pairs}")
    if not any(map(any, pairs)):
        assert (off, away) == (0, 0)
    assert off <= LOSSES
    assert away <= min(MOST, max(GRADIENTS, SPREAD * apart))


@pytest.mark.parametrize("overrides", [(), (TRAINED_BRANCHES,)], ids=["frozen trunk", "nothing frozen"])
def test_arms_train_together_as_alone(trial: Trial, tmp_path: Path, overrides: Any) -> None:
    settings, numbers = settings_of(trial, *overrides), (0, 1, 7)
    together = Course(tmp_path / "together", settings, numbers)
    for number in numbers:
        alone = [Course(tmp_path / f"alone{number}-{i}", settings, [number]) for i in range(REPEATS)]
        refuse_another_course(together, alone, number)
    heads = [trainer.model.pts_bbox_head for trainer in together.cohort.trainers]
    assert all(len(head.train_graphs) for head in heads)
    assert len({id(head.train_graphs._recorder) for head in heads}) == 1
    streams = {trainer.model._lidar_stream for trainer in together.cohort.trainers} - {None}
    assert len(streams) == 1


@pytest.mark.parametrize("overrides", [(), (TRAINED_BRANCHES,)], ids=["frozen trunk", "nothing frozen"])
@pytest.mark.parametrize("where", ["arms", "points", "images", "all"])
def test_streams_that_come_late_change_nothing(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, overrides: Any
) -> None:
    settings = settings_of(trial, *overrides)
    prompt = [Course(tmp_path / f"prompt{i}", settings, [0, 7]) for i in range(REPEATS)]
    places = {
        "arms": (ArmTrainer, "launch"),
        "points": (CmtDetector, "_canvas"),
        "images": (CmtDetector, "_image_levels"),
    }
    for owner, name in places.values() if where == "all" else [places[where]]:
        monkeypatch.setattr(owner, name, after_sleep(getattr(owner, name)))
    late = Course(tmp_path / "late", settings, [0, 7])
    for number in (0, 7):
        refuse_another_course(late, prompt, number)


def after_sleep(function: Any, cycles: int = 50_000_000) -> Any:
    """Let the stream of a call sleep before it: some 25 ms, while the host goes on."""

    def called(*args: Any) -> Any:
        torch.cuda._sleep(cycles)
        return function(*args)

    return called


def test_a_time_is_of_the_arm_that_takes_it(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, cycles = ArmTrainer.launch, 10**9

    def slow(trainer: ArmTrainer, inputs: StepInputs) -> None:
        if trainer.arm.session.folder.name == "arm1":
            wait = TrainStep.launch
            with monkeypatch.context() as patch:  # inside of what is timed
                patch.setattr(TrainStep, "launch", after_sleep(wait, cycles))
                launch(trainer, inputs)
        else:
            launch(trainer, inputs)

    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    torch.cuda._sleep(cycles)
    ended.record()
    ended.synchronize()
    asleep = begun.elapsed_time(ended) / 1e3
    monkeypatch.setattr(ArmTrainer, "launch", slow)
    times = Course(tmp_path, settings_of(trial), [0, 1, 7]).times
    for own in times[1]._owns[3:]:
        assert asleep * 0.8 < own < asleep * 2
    for other in (0, 7):
        assert max(times[other]._owns[3:]) < asleep / 2
        assert max(times[other]._trunks[3:]) < asleep / 2


def test_an_arm_that_diverges_leaves_and_the_others_go_on(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(trial)
    expected = {n: Course(tmp_path / f"alone{n}", settings, [n]) for n in (1, 7)}
    losses = TrainStep.losses

    def planted(step: TrainStep, prepared: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = losses(step, prepared)
        steps = next(t.done for t in cohort.trainers if t.train_step is step)
        broken = step is first.train_step and steps == 3
        return (total * torch.nan if broken else total), parts

    told: list[tuple[str, Exception | None]] = []
    arms = arms_in(tmp_path, settings, [0, 1, 7])
    cohort = Cohort(arms, left=lambda arm, error: told.append((arm.session.folder.name, error)))
    first = cohort.trainers[0]
    monkeypatch.setattr(TrainStep, "losses", planted)
    cohort.train()
    ((name, error),) = told
    assert name == "arm0"
    assert "training stopped at step 4 of 6" in str(error)
    assert all(p.isfinite().all() for p in first.model.parameters())
    for number, trainer in zip((1, 7), cohort.trainers, strict=True):
        other = expected[number].gradients[number]
        assert float((gradient(trainer) - other).norm() / other.norm()) <= GRADIENTS


@pytest.fixture
def whole_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("whole_memory")
def test_after_memory_has_run_out_a_smaller_cohort_trains(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as ``run_cohort`` sets it: a search after the first courses could end at kernels that round otherwise
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    settings = settings_of(trial)
    alone = [Course(tmp_path / f"alone{i}", settings, [7]) for i in range(REPEATS)]
    for course in alone:
        course.cohort.trainers.clear()
    gc.collect()
    torch.cuda.empty_cache()
    left = torch.cuda.memory_reserved() + 24 * 2**20  # less than a model's activations
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(left / total)
    with pytest.raises(TrialMemoryError, match="out of memory"):
        run_cohort(arms_in(tmp_path / "many", settings, range(8)))
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    refuse_another_course(Course(tmp_path / "again", settings, [7]), alone, 7)


class Drops(nn.Module):
    """A layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def compute(self, x: Tensor) -> tuple[Tensor]:
        return (F.dropout(self.linear(x), 0.5),)


class Frozen(nn.Module):
    """Many products one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for _ in range(50):
            x = self.linear(x)
        return (x,)


def test_dropout_of_a_graph_is_its_own_while_another_lane_replays_beside_it() -> None:
    """Graphs share the tensors that hold seed and offset: a lane without dropout must not write them."""
    recorders, beside = Recorders(), torch.cuda.Stream()
    drops, frozen, x = Drops().cuda(), Frozen().cuda(), torch.rand(256, 64, device="cuda")
    graphs = TrainGraphs(drops, recorders=recorders)
    other = TrainGraphs(frozen, lane="lidar", recorders=recorders)
    beside.wait_stream(torch.cuda.current_stream())
    for seed in range(40):
        with torch.cuda.stream(beside):
            for _ in range(4):
                other.run_frozen(frozen, x)
        torch.manual_seed(seed)
        (found,) = graphs.run("drops", drops.compute, (x,))
        found.sum().backward()
        torch.manual_seed(seed)
        (expected,) = drops.compute(x)
        assert torch.equal(found == 0, expected == 0), seed
    assert len(graphs) == len(other) == 1


def test_every_arm_has_the_average_of_its_own_weights_and_takes_it_for_a_while(
    trial: Trial, tmp_path: Path
) -> None:
    hook = ("custom_hooks", '[{"type": "EMAHook", "momentum": 0.25}]')
    cohort = Cohort(arms_in(tmp_path, replace(settings_of(trial, hook), seed=3), (0, 1)))
    expected: list[dict[str, Tensor]] = [{}, {}]
    with closing(cohort.batches(0, STEPS)) as batches:
        for index, samples in enumerate(batches):
            cohort.step(index, samples)
            for place, trainer in enumerate(cohort.trainers):
                now = weights_of(trainer)
                old = expected[place] or now
                expected[place] = {name: old[name].lerp(value, 0.25) for name, value in now.items()}
    for trainer, average in zip(cohort.trainers, expected, strict=True):
        trainer.read()
        own = weights_of(trainer)
        assert average.keys() == own.keys()
        for name, value in average.items():
            torch.testing.assert_close(trainer.average.tensors[name], value)
        with trainer.average.in_effect():
            held = weights_of(trainer)
        assert all(torch.equal(held[name], trainer.average.tensors[name]) for name in held)
        assert all(torch.equal(value, own[name]) for name, value in weights_of(trainer).items())
        assert any(not torch.equal(own[name], average[name]) for name in own)


def weights_of(trainer: ArmTrainer) -> dict[str, Tensor]:
    """Copies of the weights that are averaged."""
    named = trainer.model.named_parameters()
    return {name: value.detach().clone() for name, value in named if name in trainer.average.tensors}
