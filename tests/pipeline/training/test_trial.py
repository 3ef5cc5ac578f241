"""A whole trial on generated data: repeatable, resumable, and refused where it must be."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.plan import Plan, PlanError
from pipeline.config.settings import DataSettings, TrialSettings
from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.formats.open import open_source
from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import DataError
from pipeline.detector.build import ConfigError
from pipeline.detector.weights import WeightsError
from pipeline.errors import TrialError
from pipeline.evaluation import evaluator
from pipeline.evaluation.submission import load_detections
from pipeline.metrics.rows import Row, read_rows, select
from pipeline.runtime.session import LocalSession
from pipeline.storage.checkpoint import CheckpointError
from pipeline.training.dataset import prepare_training
from pipeline.training.trial import run_trial
from tests.pipeline.conftest import OVERRIDES

Trial = Callable[..., TrialSettings]
TRAINED = ("loss", "loss_cls", "grad_norm", "bias_scale", "bias_scale_grad")


class Crash(BaseException):
    """What a kill looks like from inside: nothing catches it."""


class CrashingSession(LocalSession):
    """Dies after the first checkpoint."""

    def report_checkpoint(self, checkpoint: Path | None) -> None:
        raise Crash


def numbers(folder: Path, *metrics: str) -> dict[tuple[str, str, int], float]:
    rows = read_rows(folder / "rows.jsonl")
    return {(row.metric, row.condition, row.step): row.value for row in rows if row.metric in metrics}


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time three inference calls instead of thirty: here it matters that it happens, not how fast."""
    monkeypatch.setattr(evaluator, "CALLS", 3)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial that ran through; made once, looked at by many tests."""
    return tmp_path_factory.mktemp("trials") / "unbroken"


@pytest.fixture
def done(unbroken: Path, trial: Trial) -> Path:
    if not unbroken.exists():
        run_trial(trial(conditions=("clean", "no_lidar")), LocalSession(unbroken))
    return unbroken


def test_a_trial_leaves_rows_weights_and_detections(done: Path) -> None:
    rows = read_rows(done / "rows.jsonl")
    steps = [row.step for row in select(rows, metric="loss")]
    assert steps == [1, 2, 3, 4]
    inference = ("inference_latency_p50_ms", "inference_latency_p95_ms")
    for curve in ("samples_per_s", "learning_rate"):  # while it runs, for the eye
        found = list(select(rows, metric=curve))
        assert [row.step for row in found] == steps
        assert all(row.value > 0 for row in found)
    for metric in ("train_samples_per_s", "step_ms", *inference, "peak_resident_gib"):
        (row,) = select(rows, metric=metric)
        assert row.value > 0
        assert row.step == 4
    for condition in ("clean", "no_lidar"):
        assert len(list(select(rows, metric="NDS", condition=condition))) == 1
        assert len([r for r in rows if r.metric.startswith("AP/") and r.condition == condition]) == 10
        poses, found = load_detections(done / "predictions" / f"{condition}.npz")
        assert len(poses) == len(found) == 2
    assert all(math.isfinite(row.value) for row in rows)
    assert (done / "weights.safetensors").exists()


def test_rows_name_the_resolved_plan_and_the_trial(done: Path) -> None:
    rows = read_rows(done / "rows.jsonl")
    (plan,) = {row.plan for row in rows}
    assert str(Plan.parse(plan)["decoder.1.cross"]) == "none/sdpa_math"
    assert {(row.trial, row.study, row.device) for row in rows} == {("unbroken", "test", "cpu")}


def test_kernels_are_recorded_at_every_site(done: Path) -> None:
    rows = [row for row in read_rows(done / "rows.jsonl") if row.metric == "kernel_ms"]
    plan = Plan.parse(rows[0].plan)
    assert {row.site for row in rows} == {site for site, _ in plan.choices}
    for site, choice in plan.choices:
        names = {row.kernel for row in rows if row.site == site}
        assert choice.impl == "sdpa_math"
        assert "aten::_scaled_dot_product_attention_math" in names, site


def test_the_bias_scale_learns(done: Path) -> None:
    gradients = numbers(done, "bias_scale_grad")
    scales = numbers(done, "bias_scale")
    assert any(value != 0 for value in gradients.values())
    assert len(set(scales.values())) > 1
    rows = read_rows(done / "rows.jsonl")
    # The plan biases layer 0 alone: what its site would do to the scale is what happens to it.
    for step in (1, 2, 3, 4):
        whole, of_site = (
            next(select(rows, metric="bias_scale_grad", site=site, step=step))
            for site in ("", "decoder.0.cross")
        )
        assert (whole.unit, of_site.unit) == ("1/logits", "1/logits")
        assert of_site.value == pytest.approx(whole.value, rel=1e-6)


def test_two_batches_of_one_make_a_step_of_the_same_frames(done: Path, trial: Trial, tmp_path: Path) -> None:
    twice = (*OVERRIDES, ("optim_wrapper.accumulative_counts", "2"))
    run_trial(trial(batch_size=1, steps=2, overrides=twice), LocalSession(tmp_path / "twice"))
    rows = read_rows(tmp_path / "twice" / "rows.jsonl")
    whole, of_site = numbers_at(rows, ""), numbers_at(rows, "decoder.0.cross")
    assert [step for step, _ in whole] == [1, 2]
    assert of_site == [(step, pytest.approx(value, rel=1e-5)) for step, value in whole]
    # Each batch has noise and normaliser of its own, so that the mean loss is only near that of one batch.
    losses = [next(iter(numbers(folder, "loss").values())) for folder in (done, tmp_path / "twice")]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    rate, step_ms = (next(select(rows, metric=m)).value for m in ("train_samples_per_s", "step_ms"))
    assert rate == pytest.approx(2 / step_ms * 1000, rel=0.5)


def numbers_at(rows: list[Row], site: str) -> list[tuple[int, float]]:
    return [(row.step, row.value) for row in select(rows, metric="bias_scale_grad", site=site)]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    done: Path, trial: Trial, tmp_path: Path
) -> None:
    run_trial(trial(conditions=("clean", "no_lidar")), LocalSession(tmp_path / "again"))
    assert numbers(tmp_path / "again", *TRAINED, "NDS", "mATE") == numbers(done, *TRAINED, "NDS", "mATE")
    one, two = (load_file(f / "weights.safetensors") for f in (done, tmp_path / "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    run_trial(trial(seed=1, steps=1), LocalSession(tmp_path / "other"))
    assert numbers(tmp_path / "other", "loss")[("loss", "", 1)] != numbers(done, "loss")[("loss", "", 1)]


def test_a_resumed_trial_equals_the_unbroken_one(done: Path, trial: Trial, tmp_path: Path) -> None:
    settings = trial(conditions=("clean", "no_lidar"))
    folder = tmp_path / "broken"
    with pytest.raises(Crash):
        run_trial(settings, CrashingSession(folder))
    assert LocalSession(folder).latest_checkpoint() == folder / "checkpoints/step_00000002"
    np.random.rand(7), torch.rand(7)  # whatever ran in between must not matter
    run_trial(settings, LocalSession(folder))
    assert numbers(folder, *TRAINED, "NDS", "mATE") == numbers(done, *TRAINED, "NDS", "mATE")
    one, two = (load_file(f / "weights.safetensors") for f in (done, folder))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_finished_trial_run_again_adds_no_training_row(done: Path, trial: Trial) -> None:
    before = [row for row in read_rows(done / "rows.jsonl") if row.metric in TRAINED]
    run_trial(trial(conditions=("clean", "no_lidar")), LocalSession(done))
    assert [row for row in read_rows(done / "rows.jsonl") if row.metric in TRAINED] == before


def test_loader_processes_change_no_bit(small_dataset: Path) -> None:
    source = open_source(small_dataset, "v1.0-mini", "mini_train")
    transform = partial(
        prepare_training, size=(48, 112), limits=(-54, -54, -5, 54, 54, 3), vary=True, mask=(0.25, 0.25)
    )
    order = BatchOrder(len(source), 2, 0, 1, seed=0)
    alone, helped = (list(training_batches(source, order, transform, 0, 3, workers)) for workers in (0, 1))
    for one, two in zip(chain(*alone), chain(*helped), strict=True):
        for field in ("images", "points", "boxes", "lidar2img"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_a_checkpoint_of_other_settings_is_refused(done: Path, trial: Trial) -> None:
    with pytest.raises(CheckpointError, match="was written under settings"):
        run_trial(trial(seed=3), LocalSession(done))


def test_every_plan_of_a_mix_is_trained_and_progress_is_told(trial: Trial, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []

    class Listening(LocalSession):
        def progress(self, stage: str, done: int, total: int, seconds_left: float) -> None:
            heard.append((stage, done, total))
            assert seconds_left >= 0

    none = Plan.of({"aqr.0.cross": "local/sdpa_math", "decoder.*": "none/sdpa_math"})
    run_trial(trial(plan_mixture=(none,), steps=6, checkpoint_every=6), Listening(tmp_path / "mix"))
    rows = read_rows(tmp_path / "mix" / "rows.jsonl")
    with_bias = {row.step for row in select(rows, metric="bias_scale_grad")}
    assert 0 < len(with_bias) < 6
    assert ("train", 6, 6) in heard
    assert ("evaluate", 2, 2) in heard


def test_a_diverging_trial_stops_with_a_sentence_and_a_row(trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r"training stopped at step \d+ of 30 under the plan aqr\.0\.cross="):
        run_trial(trial(lr_scale=1e20, steps=30, warmup_steps=0), LocalSession(tmp_path / "bad"))
    rows = read_rows(tmp_path / "bad" / "rows.jsonl")
    assert any(math.isnan(row.value) for row in select(rows, metric="loss"))


def test_weights_of_another_architecture_are_refused(done: Path, trial: Trial, tmp_path: Path) -> None:
    tensors = load_file(done / "weights.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="of another architecture"):
        run_trial(trial(init_checkpoint=str(tmp_path / "other.safetensors")), LocalSession(tmp_path / "t"))
    assert not (tmp_path / "t" / "rows.jsonl").exists()


def test_training_starts_from_the_init_weights(done: Path, trial: Trial, tmp_path: Path) -> None:
    settings = trial(init_checkpoint=str(done / "weights.safetensors"), steps=0, seed=9)
    run_trial(settings, LocalSession(tmp_path / "t"))
    fresh = numbers(tmp_path / "t", "NDS", "mATE")
    assert fresh[("NDS", "clean", 0)] == numbers(done, "NDS")[("NDS", "clean", 4)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"overrides": (("model.pts_bbox_head.num_qury", "3"),)}, ConfigError, "num_qury"),
        ({"plan": Plan.of({"decoder.7.cross": "none/sdpa_math"})}, PlanError, "matches no site"),
        ({"plan_mixture": (Plan.of({"*": "window/sdpa_flash"}),)}, PlanError, "cannot run"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_training(
    trial: Trial, tmp_path: Path, given: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_trial(trial(**given), LocalSession(tmp_path / "t"))
    assert not (tmp_path / "t" / "rows.jsonl").exists()


def test_a_split_that_is_not_there_is_refused(trial: Trial, tmp_path: Path, small_dataset: Path) -> None:
    settings = trial()
    settings = replace(settings, data=replace(settings.data, train_split="mini_test"))
    with pytest.raises(DataError, match="mini_test"):
        run_trial(settings, LocalSession(tmp_path / "t"))


def test_settings_survive_json(trial: Trial) -> None:
    settings = trial(lidar_dropout_prob=0.5, conditions=("clean", "no_lidar"))
    back = TrialSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert back == settings
    assert back.digest == settings.digest


def test_a_broken_frame_is_skipped_counted_and_listed(
    small_dataset: Path, trial: Trial, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(small_dataset, tmp_path / "data"))
    record = read_frames(root, "v1.0-mini", "mini_train")[1]
    record.lidar_path.write_bytes(b"12345")
    data = DataSettings(train=(str(root),), val=str(small_dataset))
    with pytest.raises(DataError, match="5 bytes is no whole number of points"):
        run_trial(trial(data=data, steps=2), LocalSession(tmp_path / "stops"))
    skipping = replace(trial(data=data, steps=2), data=replace(data, max_broken_frames=1, shuffle_buffer=2))
    run_trial(skipping, LocalSession(tmp_path / "skips"))
    rows = read_rows(tmp_path / "skips" / "rows.jsonl")
    assert [(row.value, row.unit) for row in select(rows, metric="broken_frames")] == [(1.0, "frames")]
    (listed,) = (tmp_path / "skips" / "broken_frames_0.jsonl").read_text().splitlines()
    assert json.loads(listed)["token"] == record.token


LEAN = """
import json, sys
from pathlib import Path
from pipeline.config.settings import TrialSettings
from pipeline.evaluation import evaluator
from pipeline.runtime.session import LocalSession
from pipeline.training.trial import run_trial
evaluator.CALLS = 1
run_trial(TrialSettings.from_dict(json.loads(sys.argv[1])), LocalSession(Path(sys.argv[2])))
assert (Path(sys.argv[2]) / "rows.jsonl").exists()
unused = "torch._dynamo torch._inductor sympy sklearn skimage scipy.stats numba pandas ray mlflow"
print(*({*unused.split()} & {*sys.modules}))
"""


def test_a_trial_imports_nothing_large_that_it_does_not_use(trial: Trial, tmp_path: Path) -> None:
    """The compiler and scikit-learn alone take two seconds of CPU, which every trial would pay."""
    settings = trial(conditions=("clean",))
    short = replace(settings, train=replace(settings.train, steps=1, checkpoint_every=1))
    run = [sys.executable, "-c", LEAN, json.dumps(short.to_dict()), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
