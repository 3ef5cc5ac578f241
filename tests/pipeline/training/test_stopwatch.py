"""The stopwatch on the smallest model: rows as promised, equal steps in a round, weights that stay."""

import math
import multiprocessing
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.plan import Plan
from pipeline.config.settings import TrialSettings
from pipeline.errors import TrialError
from pipeline.metrics.recorder import Measure
from pipeline.metrics.rows import Row, append_rows, read_rows
from pipeline.metrics.versions import commit
from pipeline.runtime.cores import available_cores
from pipeline.training import stopwatch, stopwatch_processes
from pipeline.training.step import loss_of
from pipeline.training.stopwatch import draw_order, rounds_of, rounds_of_trial
from pipeline.training.stopwatch_processes import MOST, rounds_of_processes
from pipeline.training.stopwatch_rounds import (
    ENOUGH,
    INFERENCE,
    PROCESS,
    TIME_OVER,
    TRAINING,
    TRUNK,
    WALL,
    Rounds,
    Start,
    TimedTrial,
    Until,
    keep_rounds,
)
from pipeline.training.timed_model import TimedModel, num_boxes, timed_model_of
from tests.pipeline.conftest import settings_on

DIGEST = "00ff00ff00ff"
REST = {"aqr.0.cross": "local/sdpa_math", "decoder.*.self": "none/sdpa_math"}


def plan(*biases: str) -> Plan:
    sites = {f"decoder.{i}.cross": f"{bias}/sdpa_math" for i, bias in enumerate(biases)}
    return Plan.of(REST | sites)


PLANS = (plan("none", "none", "none"), plan("window", "none", "none"), plan("window", "gaussian", "none"))


def time_here(settings: TrialSettings, folder: Path, until: Until, digest: str = DIGEST) -> str:
    """Time in this process; return why it ended."""
    trial = TimedTrial(settings, PLANS, folder, digest)
    return keep_rounds(lambda rows: rounds_of_trial(trial, Start.after(rows)), folder / "rows.jsonl", until)


class Watch:
    """What happened in a run: the losses of its training steps, and the models that it timed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.losses: list[float] = []
        self.models: list[TimedModel] = []
        self.before: dict[str, torch.Tensor] = {}
        train, make = TimedModel.train, stopwatch.timed_model_of

        def watched(timed: TimedModel) -> list[list[Measure]]:
            (measures,) = steps = train(timed)
            self.losses.append(loss_of(measures))
            return steps

        def made(*given: Any) -> TimedModel:
            timed = make(*given)
            self.models.append(timed)
            self.before = {k: v.clone() for k, v in timed.model.state_dict().items()}
            return timed

        patch.setattr(TimedModel, "train", watched)
        patch.setattr(stopwatch, "timed_model_of", made)


@pytest.fixture(scope="module")
def run(small_settings: TrialSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Watch]:
    """Three rounds: the time is over at once."""
    folder = tmp_path_factory.mktemp("study") / "stopwatch"
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        assert time_here(small_settings, folder, Until(0.0)) == TIME_OVER
    return read_rows(folder / "rows.jsonl"), watch


@pytest.fixture(scope="module")
def small_settings(small_dataset: Path) -> TrialSettings:
    return settings_on(small_dataset, study="timed", batch_size=1)


def visits(rows: Sequence[Row], metric: str) -> dict[int, list[Row]]:
    """Round -> its visits, in order."""
    rounds: dict[int, list[Row]] = defaultdict(list)
    for row in sorted((r for r in rows if r.metric == metric), key=lambda r: r.draw or 0):
        rounds[row.step].append(row)
    return rounds


@pytest.mark.parametrize("metric", [TRAINING, INFERENCE])
def test_a_round_visits_every_plan_once_and_the_baseline_twice(
    run: tuple[list[Row], Watch], metric: str
) -> None:
    rows, watch = run
    resolved = [str(p.resolve(watch.models[0].model.sites)) for p in PLANS]
    rounds = visits(rows, metric)
    assert sorted(rounds) == [0, 1, 2]
    for index, visited in rounds.items():
        assert Counter(row.plan for row in visited) == {resolved[0]: 2, resolved[1]: 1, resolved[2]: 1}
        assert [row.draw for row in visited] == [0, 1, 2, 3]
        order = draw_order(DIGEST, index, metric, 4)
        assert [row.plan for row in visited] == [[resolved[0], *resolved][i] for i in order]


def test_the_trunk_is_timed_once_a_round_under_no_plan(run: tuple[list[Row], Watch]) -> None:
    rows, watch = run
    for metric in TRUNK.values():
        found = [row for row in rows if row.metric in (metric, metric + WALL)]
        assert [(row.step, row.plan) for row in found] == [(i, "") for i in (0, 0, 1, 1, 2, 2)]
    assert all(watch.models[0].model.trunk_stages)  # both branches are frozen in this model


def test_a_visit_that_begins_after_the_trunk_computes_what_a_whole_step_does(
    run: tuple[list[Row], Watch],
) -> None:
    _, watch = run
    (timed,) = watch.models
    for turn, one in enumerate(PLANS):
        timed.use(one, turn)
        timed.run_training_trunk()
        timed.use(one, turn)
        (own,) = timed.train()
        timed.restore()
        timed.use(one, turn)
        whole = timed._train_step.step(timed.batch, 0.0)
        timed.restore()
        assert [(m.metric, m.value) for m in own] == [(m.metric, m.value) for m in whole]
        timed.run_detection_trunk()
        (mine,), (theirs,) = timed.detect(), timed._detector.run(timed._frame)
        assert len(mine.scores) > 0
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_every_visit_has_two_clocks_and_says_what_it_was(
    run: tuple[list[Row], Watch], small_settings: TrialSettings
) -> None:
    rows, _ = run
    for metric in (TRAINING, INFERENCE):
        first, second = visits(rows, metric), visits(rows, metric + WALL)
        assert [(r.plan, r.draw) for r in first[0]] == [(r.plan, r.draw) for r in second[0]]
    assert all(row.value > 0 and math.isfinite(row.value) for row in rows if row.metric != PROCESS)
    assert [(row.step, row.value) for row in rows if row.metric == PROCESS] == [(0, 0), (1, 0), (2, 0)]
    said = {(r.study, r.trial, r.unit, r.device, r.commit, r.recipe_digest, r.seed) for r in rows}
    common = ("cpu", commit(), DIGEST, small_settings.seed)
    assert said == {("timed", "stopwatch", unit, *common) for unit in ("ms", "")}
    assert all("data=" in row.versions for row in rows)


def test_the_orders_of_rounds_differ_and_come_from_the_digest_alone() -> None:
    orders = [draw_order(DIGEST, i, TRAINING, 9) for i in range(20)]
    assert orders == [draw_order(DIGEST, i, TRAINING, 9) for i in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert orders[0] != draw_order("11ff00ff00ff", 0, TRAINING, 9)
    places = Counter(order.index(0) for order in (draw_order(DIGEST, i, TRAINING, 9) for i in range(900)))
    assert max(abs(places[i] - 100) for i in range(9)) < 4 * math.sqrt(
        100 * 8 / 9
    )  # four standard deviations


def test_the_two_visits_of_the_baseline_train_the_same_step(run: tuple[list[Row], Watch]) -> None:
    rows, watch = run
    losses = watch.losses[-12:]  # of the three rounds; before them was warm-up
    per_round = {}
    for index, visited in visits(rows, TRAINING).items():
        by_plan = defaultdict(list)
        for row, loss in zip(visited, losses[4 * index : 4 * index + 4], strict=True):
            by_plan[row.plan].append(loss)
        baseline = next(found for found in by_plan.values() if len(found) == 2)
        assert baseline[0] == baseline[1]
        assert len({loss for found in by_plan.values() for loss in found}) == 3  # a bias changes the loss
        per_round[index] = baseline[0]
    assert len(set(per_round.values())) == 3  # a random state each


def test_weights_and_statistics_keep_their_bits(run: tuple[list[Row], Watch]) -> None:
    _, watch = run
    (timed,) = watch.models
    after = timed.model.state_dict()
    assert all(torch.equal(after[name], before) for name, before in watch.before.items())
    timed.check_unchanged()


def test_a_second_call_goes_on_and_a_round_that_was_cut_short_is_measured_again(
    run: tuple[list[Row], Watch], small_settings: TrialSettings, tmp_path: Path
) -> None:
    rows, _ = run
    folder = tmp_path / "stopwatch"
    folder.mkdir()
    source = [row for row in rows if row.step < 2]
    append_rows(folder / "rows.jsonl", [*source, *[r for r in rows if r.step == 2][:5]])
    asked: list[int] = []
    until = Until(0.0, progress=lambda rounds, seconds: asked.append(rounds))
    assert time_here(small_settings, folder, until) == TIME_OVER
    again = read_rows(folder / "rows.jsonl")
    assert again[: len(source)] == source
    assert Counter(r.step for r in again) == Counter(r.step for r in rows)
    assert asked == [3]
    assert [r.plan for r in visits(again, TRAINING)[2]] == [r.plan for r in visits(rows, TRAINING)[2]]


@pytest.mark.parametrize(
    ("field", "value"),
    [("commit", "abc"), ("device", "NVIDIA H200"), ("versions", "torch=1"), ("recipe_digest", "1")],
)
def test_rows_that_were_measured_otherwise_are_refused(
    run: tuple[list[Row], Watch], small_settings: TrialSettings, tmp_path: Path, field: str, value: str
) -> None:
    rows, _ = run
    folder = tmp_path / "stopwatch"
    append_rows(folder / "rows.jsonl", [replace(row, **{field: value}) for row in rows])
    with pytest.raises(
        TrialError, match=f"measured with {field} {value}, and now it is .*start anew with --again"
    ):
        time_here(small_settings, folder, Until(0.0))


def test_it_ends_as_soon_as_a_look_finds_enough(run: tuple[list[Row], Watch], tmp_path: Path) -> None:
    rows, _ = run
    one = [row for row in rows if row.step == 0]
    looks: list[int] = []

    def enough(found: Sequence[Row]) -> bool:
        looks.append(len({row.step for row in found}))
        return looks[-1] >= 16

    closed: list[int] = []

    def planted(before: list[Row]) -> Rounds:
        try:
            for index in count(len(before)):
                yield [replace(row, step=index) for row in one]
        finally:
            closed.append(index)

    assert keep_rounds(planted, tmp_path / "rows.jsonl", Until(600.0, enough)) == ENOUGH
    assert looks == [8, 12, 16]
    assert closed == [15]
    assert len(read_rows(tmp_path / "rows.jsonl")) == 16 * len(one)


def test_a_round_in_which_a_weight_changed_is_not_kept(run: tuple[list[Row], Watch]) -> None:
    rows, watch = run
    (timed,) = watch.models
    rounds = rounds_of(timed, PLANS, replace(rows[0], plan=""), Start())
    next(rounds)
    weight = next(p for p in timed.model.parameters() if p.requires_grad)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1e-3)
    with pytest.raises(TrialError, match=r"the stopwatch changed .*at a learning rate of 0"):
        next(rounds)
    with torch.no_grad():
        weight.copy_(before)


def test_as_many_processes_as_cores_share_the_rounds(small_settings: TrialSettings, tmp_path: Path) -> None:
    """Also if trials have loader processes."""
    settings = replace(small_settings, data=replace(small_settings.data, num_loader_workers=1))
    trial = TimedTrial(settings, PLANS, tmp_path / "stopwatch", DIGEST)
    number, seen = min(available_cores(), MOST), {}
    with closing(rounds_of_processes(trial, Start(first=4))) as rounds:
        while len(set(seen.values())) < number:
            rows = next(rounds)
            assert len({row.step for row in rows}) == 1
            seen |= {row.step: row.value for row in rows if row.metric == PROCESS}
    assert min(seen) == 4
    assert all(process == (step - 4) % number for step, process in seen.items())


def test_what_a_process_refuses_is_said_here(small_settings: TrialSettings, tmp_path: Path) -> None:
    trial = TimedTrial(replace(small_settings, config="no.py"), PLANS, tmp_path / "stopwatch", DIGEST)
    with pytest.raises(TrialError, match=r"no\.py"), closing(rounds_of_processes(trial, Start())) as rounds:
        next(rounds)


def test_the_batch_is_one_of_the_trainings_with_a_median_number_of_boxes(
    small_settings: TrialSettings, tmp_path: Path
) -> None:
    timed = timed_model_of(small_settings, tmp_path / "stopwatch", 1)
    assert num_boxes(timed.batch) > 0
    assert len(timed.batch["data_samples"]) == small_settings.train.batch_size


def test_a_process_that_runs_out_of_memory_says_what_to_lower(
    small_settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(trial: TimedTrial, start: Start) -> Rounds:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(stopwatch, "rounds_of_trial", no_room)
    monkeypatch.setattr(stopwatch_processes, "leave_ctrl_c_to_parent", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    with closing(ours), closing(theirs):
        stopwatch_processes.serve(TimedTrial(small_settings, (plan("none"),), tmp_path, ""), Start(), theirs)
        assert ours.poll()
        assert re.match(r"out of memory on the cpu \(CUDA out of memory.*lower train.batch_size", ours.recv())
