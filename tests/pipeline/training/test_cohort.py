"""Trials that train together have the rows that they have alone, whatever happens to the others."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config.early_stopping import STOPPED, EarlyStopping
from pipeline.config.plan import Plan
from pipeline.config.settings import DataSettings, TrialSettings
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import DataError
from pipeline.errors import TrialError, TrialMemoryError
from pipeline.evaluation import evaluator
from pipeline.evaluation.nuscenes_metric import NuScenesMetric
from pipeline.evaluation.submission import load_detections
from pipeline.metrics.rows import read_rows, select
from pipeline.metrics.timing import Moment
from pipeline.runtime.session import LocalSession
from pipeline.storage.checkpoint import newest_checkpoint
from pipeline.training.cohort import Arm, ArmEnd, Cohort, run_cohort
from pipeline.training.cohort.arm import ArmTrainer
from pipeline.training.cohort.leaving import own_errors
from pipeline.training.cohort.shared import SharedStep, StepInputs
from pipeline.training.step import Prepared, TrainStep

Trial = Callable[..., TrialSettings]
STEPS = 4
RUNG = EarlyStopping(thresholds=((2, None),))
MEASURED_ANEW = {"ms", "s", "samples/s", "GiB", "label"}
"""Units of times, memory and places; all other rows of a trial are the same in every cohort."""

DRAWS = {  # everything that draws: masks on images, dropped sensors, noise, dropout
    "steps": STEPS,
    "camera_dropout_prob": 0.25,
    "lidar_dropout_prob": 0.25,
}


def plan(biased: int) -> Plan:
    """Return the plan whose decoder layers have a window where ``biased`` has a bit."""
    layers = {f"decoder.{i}.cross": f"{'window' if biased >> i & 1 else 'none'}/sdpa_math" for i in range(3)}
    return Plan.of({"aqr.0.cross": "local/sdpa_math", "decoder.*.self": "none/sdpa_math", **layers})


def arms_in(folder: Path, settings: TrialSettings, numbers: Sequence[int]) -> list[Arm]:
    return [Arm(replace(settings, plan=plan(n)), LocalSession(folder / f"arm{n}")) for n in numbers]


def settings_of(trial: Trial) -> TrialSettings:
    made = trial(**DRAWS)
    return replace(made, overrides=(*made.overrides, ("model.use_grid_mask", "true")))


def outcome(folder: Path) -> dict[tuple[object, ...], str]:
    """Return the rows of a trial but its times, and digests of its weights and detections."""
    found: dict[tuple[object, ...], str] = {
        (r.metric, r.site, r.condition, r.step, r.draw): r.value.hex()
        for r in read_rows(folder / "rows.jsonl")
        if r.unit not in MEASURED_ANEW
    }
    if (folder / "weights.safetensors").exists():
        for name, tensor in load_file(folder / "weights.safetensors").items():
            found["weight", name] = str(hash(tensor.numpy().tobytes()))
        poses, boxes = load_detections(folder / "predictions" / "clean.npz")
        found["poses"] = str([pose.token for pose in poses])
        found["boxes"] = str([hash(one.boxes.tobytes() + one.scores.tobytes()) for one in boxes])
    return found


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "CALLS", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.fixture
def alone(place: Path, trial: Trial) -> dict[int, dict[tuple[object, ...], str]]:
    """What three arms give that ran alone; made once."""
    for number in (0, 1, 7):
        if not (place / f"arm{number}").exists():
            assert run_cohort(arms_in(place, settings_of(trial), [number]), RUNG) == [ArmEnd(f"arm{number}")]
    return {number: outcome(place / f"arm{number}") for number in (0, 1, 7)}


def test_arms_train_together_as_they_train_alone(trial: Trial, tmp_path: Path, alone: dict) -> None:
    told: list[ArmEnd] = []
    ends = run_cohort(arms_in(tmp_path, settings_of(trial), [7, 0, 1]), RUNG, told.append)
    assert ends == told == [ArmEnd("arm7"), ArmEnd("arm0"), ArmEnd("arm1")]
    for number, expected in alone.items():
        assert outcome(tmp_path / f"arm{number}") == expected
    assert alone[0] != alone[1] != alone[7]
    for metric in ("step_ms", "step_trunk_ms", "step_own_ms", "inference_latency_p50_ms"):
        (row,) = select(read_rows(tmp_path / "arm7" / "rows.jsonl"), metric=metric)
        assert row.value > 0


def test_scores_and_pictures_of_other_processes_are_the_same(
    trial: Trial, tmp_path: Path, alone: dict, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms, seen = arms_in(tmp_path, settings_of(trial), [7, 0, 1]), []
    for arm in arms:
        arm.session.cores = 2

    def watched(self: NuScenesMetric, *given: Any) -> Any:
        seen.append(os.getpid())
        return scored(self, *given)

    scored = NuScenesMetric.score_draws
    monkeypatch.setattr(NuScenesMetric, "score_draws", watched)
    assert not any(end.error for end in run_cohort(arms, RUNG))
    assert seen == [], "no set of detections is scored in this process"
    for number, expected in alone.items():
        assert outcome(tmp_path / f"arm{number}") == expected
    pictures = [folder / "arm7" / "scene.png" for folder in (tmp_path, place)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert not (tmp_path / "arm0" / "scene.png").exists(), "nothing is biased there"


def test_arms_share_the_trunk_and_nothing_else(trial: Trial, tmp_path: Path) -> None:
    one, other = (t.model for t in Cohort(arms_in(tmp_path, settings_of(trial), [0, 1])).trainers)
    shared = {name for name, p in one.named_parameters() if p is other.get_parameter(name)}
    assert shared == {name for name, p in one.named_parameters() if not p.requires_grad}
    assert any(name.startswith("pts_branch.") for name in shared)
    assert all(torch.equal(p, other.get_parameter(name)) for name, p in one.named_parameters())
    assert one.pts_bbox_head.sites["decoder.0.cross"] is not other.pts_bbox_head.sites["decoder.0.cross"]


def test_an_arm_that_diverges_leaves_and_the_others_go_on(
    trial: Trial, tmp_path: Path, alone: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = ArmTrainer.launch

    def plant(trainer: ArmTrainer, inputs: StepInputs) -> None:
        if trainer.arm.session.folder.name == "arm0" and inputs.step.index == 2:
            with torch.no_grad():
                trainer.model.pts_bbox_head.reference_points.weight.fill_(math.nan)
        launch(trainer, inputs)

    monkeypatch.setattr(ArmTrainer, "launch", plant)
    told: list[ArmEnd] = []
    ends = run_cohort(arms_in(tmp_path, settings_of(trial), [0, 1, 7]), RUNG, told.append)
    assert [end.trial for end in told] == ["arm0", "arm1", "arm7"]
    assert "training stopped at step 3 of 4 under the plan" in ends[0].error
    assert "DivergedError" in ends[0].details
    assert [end.error for end in ends[1:]] == ["", ""]
    for number in (1, 7):
        assert outcome(tmp_path / f"arm{number}") == alone[number]
    losses = [row.value for row in select(read_rows(tmp_path / "arm0" / "rows.jsonl"), metric="loss")]
    assert [math.isnan(loss) for loss in losses] == [False, False, True]


def test_no_checkpoint_holds_a_step_that_was_not_finite(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = TrainStep.losses, iter(range(3))

    def planted(step: TrainStep, prepared: Prepared) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = losses(step, prepared)
        return (total * math.nan if next(calls) == 1 else total), parts

    monkeypatch.setattr(TrainStep, "losses", planted)
    fused = (
        "optim_wrapper.optimizer.fused",
        "true",
    )  # as on a GPU: a step is read after the next is launched
    settings = trial(steps=4, log_every=4, checkpoint_every=2)
    settings = replace(settings, overrides=(*settings.overrides, fused))
    (end,) = run_cohort(arms_in(tmp_path, settings, [0]))
    assert "training stopped at step 2 of 4" in end.error
    assert newest_checkpoint(tmp_path / "arm0" / "checkpoints") is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_forward_pass_that_fails_on_one_of_two_ranks_ends_the_cohort(
    trial: Trial, tmp_path: Path, workers: int
) -> None:
    (trainer,) = Cohort(arms_in(tmp_path, trial(steps=1), [0])).trainers
    trainer.arm.session.world_size = workers
    step = SharedStep(0, ("a frame",), 0.0, *[Moment(torch.device("cpu"))] * 2)
    told: list[Arm] = []
    refused = nullcontext() if workers == 1 else pytest.raises(TrialError, match="a cost is not finite")
    with (
        refused,
        own_errors(trainer.arm, lambda arm, _: told.append(arm)),
        trainer._explained(step, "a plan"),
    ):
        raise FloatingPointError("a cost is not finite")
    assert told == ([trainer.arm] if workers == 1 else [])


def test_an_arm_that_is_stopped_early_leaves_and_the_others_go_on(
    trial: Trial, tmp_path: Path, place: Path, alone: dict
) -> None:
    scores = {
        number: next(select(read_rows(place / f"arm{number}" / "rows.jsonl"), metric="NDS", step=2)).value
        for number in alone
    }
    worst, *others = sorted(scores, key=lambda number: scores[number])
    floor = (scores[worst] + scores[others[0]]) / 2
    assert scores[worst] < floor
    told: list[ArmEnd] = []
    rule = EarlyStopping(thresholds=((2, floor),))
    run_cohort(arms_in(tmp_path, settings_of(trial), sorted(alone)), rule, told.append)
    assert [end.trial for end in told] == [f"arm{worst}", *(f"arm{n}" for n in sorted(others))]
    for number in others:
        assert outcome(tmp_path / f"arm{number}") == alone[number]
    rows = read_rows(tmp_path / f"arm{worst}" / "rows.jsonl")
    (stopped,) = select(rows, metric=STOPPED)
    assert stopped.value == max(row.step for row in rows) == 2
    assert not (tmp_path / f"arm{worst}" / "weights.safetensors").exists()


class Crash(BaseException):
    """What a kill looks like from inside: nothing catches it."""


class CrashingSession(LocalSession):
    """Dies after its checkpoint of a step."""

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        if checkpoint is not None and checkpoint.name == "step_00000002":
            raise Crash


def test_arms_at_different_steps_continue_together(trial: Trial, tmp_path: Path, alone: dict) -> None:
    settings = settings_of(trial)
    (arm,) = arms_in(tmp_path, settings, [1])
    with pytest.raises(Crash):
        run_cohort([replace(arm, session=CrashingSession(arm.session.folder))], RUNG)
    assert newest_checkpoint(arm.session.folder / "checkpoints") is not None
    shutil.copytree(tmp_path / "arm1", tmp_path / "again" / "arm1")
    run_cohort(arms_in(tmp_path, settings, [7, 1, 0]), RUNG)  # one has two steps, two begin
    run_cohort(arms_in(tmp_path / "again", settings, [1]), RUNG)
    for number, expected in alone.items():
        assert outcome(tmp_path / f"arm{number}") == expected
    assert outcome(tmp_path / "again" / "arm1") == alone[1]


def test_a_checkpoint_of_another_trunk_is_refused(trial: Trial, tmp_path: Path) -> None:
    """The weights that a trial began with have changed since; checkpoints leave its frozen part out."""
    run_cohort(arms_in(tmp_path / "first", trial(steps=0), [0]))
    weights = shutil.copy(tmp_path / "first" / "arm0" / "weights.safetensors", tmp_path)
    settings = trial(steps=2, checkpoint_every=2, init_checkpoint=str(weights))
    with pytest.raises(Crash):
        run_cohort(
            [replace(a, session=CrashingSession(a.session.folder)) for a in arms_in(tmp_path, settings, [1])]
        )
    saved = load_file(tmp_path / "arm1" / "checkpoints" / "step_00000002" / "tensors.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.startswith("pts_branch.backbone"))
    assert f"model/{name}" not in saved
    assert "model/pts_bbox_head.reference_points.weight" in saved
    save_file({**tensors, name: tensors[name] + 1}, weights)
    ends = run_cohort(arms_in(tmp_path, settings, [0, 1]))
    assert ends[0].error == ""
    assert "the frozen weights are others than when it was written" in ends[1].error
    save_file(tensors, weights)
    assert run_cohort(arms_in(tmp_path, settings, [1])) == [ArmEnd("arm1")]


def test_a_plan_that_cannot_run_concerns_one_arm(trial: Trial, tmp_path: Path) -> None:
    settings = trial(steps=1, checkpoint_every=1)
    bad = Arm(replace(settings, plan=Plan.of({"*": "window/sdpa_flash"})), LocalSession(tmp_path / "first"))
    ends = run_cohort([bad, *arms_in(tmp_path, settings, [1])])
    assert "cannot run" in ends[0].error
    assert ends[1] == ArmEnd("arm1")
    assert not (tmp_path / "first" / "rows.jsonl").exists()


def test_memory_that_runs_out_concerns_all(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_trainer: ArmTrainer, _inputs: StepInputs) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ArmTrainer, "launch", full)
    with pytest.raises(TrialMemoryError, match="out of memory on the cpu"):
        run_cohort(arms_in(tmp_path, trial(steps=1), [0, 1]))


def test_a_broken_frame_is_listed_by_every_arm(small_dataset: Path, trial: Trial, tmp_path: Path) -> None:
    root = Path(shutil.copytree(small_dataset, tmp_path / "data"))
    record = read_frames(root, "v1.0-mini", "mini_train")[1]
    record.lidar_path.write_bytes(b"12345")
    data = DataSettings(train=(str(root),), val=str(small_dataset))
    with pytest.raises(DataError, match="5 bytes is no whole number of points"):
        run_cohort(arms_in(tmp_path / "stops", trial(data=data, steps=2), [0, 1]))
    skipping = trial(data=replace(data, max_broken_frames=1), steps=2)
    run_cohort(arms_in(tmp_path, skipping, [0, 1]))
    for name in ("arm0", "arm1"):
        (listed,) = (tmp_path / name / "broken_frames_0.jsonl").read_text().splitlines()
        assert json.loads(listed)["token"] == record.token


def test_unequal_trials_are_refused_before_anything_is_written(trial: Trial, tmp_path: Path) -> None:
    told: list[ArmEnd] = []
    arms = [Arm(trial(seed=seed), LocalSession(tmp_path / str(seed))) for seed in (0, 1)]
    with pytest.raises(TrialError, match=r"trial 2 differs from the first in settings\.seed"):
        run_cohort(arms, ended=told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow(seconds=90)
def test_eight_arms_in_cohorts_of_eight_three_and_one(trial: Trial, tmp_path: Path) -> None:
    settings = settings_of(trial)
    for size in (8, 3, 1):
        for first in range(0, 8, size):
            run_cohort(arms_in(tmp_path / str(size), settings, range(8)[first : first + size]), RUNG)
    for number in range(8):
        eight, three, one = (outcome(tmp_path / str(size) / f"arm{number}") for size in (8, 3, 1))
        assert eight == three == one


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_cohort_continues_in_other_cohorts(
    trial: Trial, tmp_path: Path, alone: dict, seed: int
) -> None:
    settings, numbers = settings_of(trial), [0, 1, 7]
    # a forked child has the libraries loaded; where CUDA is, autograd forbids forking
    method = "spawn" if torch.cuda.is_available() else "fork"
    child = multiprocessing.get_context(method).Process(
        target=run_cohort, args=(arms_in(tmp_path, settings, numbers), RUNG)
    )
    last = random.Random(seed).randint(2, STEPS)
    child.start()
    assert child.pid is not None
    while child.is_alive():  # until a checkpoint of that step is there, or all is done
        if (tmp_path / "arm1" / "checkpoints" / f"step_{last // 2 * 2:08d}").exists():
            os.kill(child.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    run_cohort(arms_in(tmp_path, settings, [1]), RUNG)
    run_cohort(arms_in(tmp_path, settings, [7, 0]), RUNG)
    for number in numbers:
        assert outcome(tmp_path / f"arm{number}") == alone[number]
