"""The loader's order: complete, disjoint over ranks, resumable, and independent of worker counts."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.formats.file_source import FileSource
from pipeline.data.formats.frame_record import FrameRecord
from pipeline.data.formats.open import open_source
from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.broken_frames import BrokenFrames
from pipeline.data.loading.prefetch import PrefetchBudget, size_of
from pipeline.data.loading.sampler import BatchOrder, permutation
from pipeline.data.sample import DataError, Sample
from pipeline.data.source import JoinedSource
from tests.pipeline.data.formats.counted import Numbers


def add_noise(sample: Sample, rng: np.random.Generator) -> Sample:
    return replace(sample, points=sample.points + rng.normal(size=(1, 5)).astype(np.float32))


def stream(order: BatchOrder, first: int, last: int, workers: int = 0) -> list[list[tuple[str, float]]]:
    batches = training_batches(Numbers(order.frames), order, add_noise, first, last, workers)
    return [[(s.token, float(s.points[0, 0])) for s in batch] for batch in batches]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on two cores
@pytest.mark.parametrize("workers", range(4))
@pytest.mark.parametrize("world_size", range(1, 6))
def test_ranks_and_loader_processes_deal_every_frame_once(world_size: int, workers: int) -> None:
    """120 frames: divisible by every global batch here, so that an epoch ends with a step."""
    steps = 120 // (2 * world_size)
    dealt = Counter(
        token
        for rank in range(world_size)
        for batch in stream(BatchOrder(120, 2, rank, world_size, seed=4), steps, 2 * steps, workers)
        for token, _ in batch
    )
    assert dealt == Counter({str(frame): 1 for frame in range(120)})


@pytest.mark.parametrize("frames", [1, 2, 7, 12, 31])
@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("blocks", [0, 3])
def test_no_world_loses_or_doubles_a_frame(frames: int, world_size: int, blocks: int) -> None:
    """Whether or not a global batch divides an epoch: after ``frames`` steps every epoch is whole."""
    sizes = tuple(min(blocks, frames - first) for first in range(0, frames, blocks)) if blocks else ()
    for batch_size in (1, 3):
        orders = [BatchOrder(frames, batch_size, r, world_size, 0, sizes, 5) for r in range(world_size)]
        dealt = Counter(at for order in orders for step in range(frames) for at in order.batch(step))
        epochs = batch_size * world_size
        assert dealt == Counter({(e, frame): 1 for e in range(epochs) for frame in range(frames)})


def test_an_epoch_that_does_not_divide_loses_nothing() -> None:
    order = BatchOrder(frames=7, batch_size=3, rank=0, world_size=1, seed=0)
    dealt = Counter(at for step in range(7) for at in order.batch(step))
    assert dealt == Counter({(epoch, frame): 1 for epoch in range(3) for frame in range(7)})


def test_epochs_and_seeds_differ() -> None:
    orders = [BatchOrder(50, 50, 0, 1, seed) for seed in (0, 1)]
    first, second = ([frame for _, frame in orders[0].batch(step)] for step in (0, 1))
    assert first != second
    assert first != [frame for _, frame in orders[1].batch(0)]


def test_two_ranks_hold_what_one_holds_at_twice_the_batch() -> None:
    joint = BatchOrder(10, 4, 0, 1, seed=3)
    halves = [BatchOrder(10, 2, rank, 2, seed=3) for rank in range(2)]
    for step in range(6):
        assert joint.batch(step) == halves[0].batch(step) + halves[1].batch(step)


@pytest.mark.parametrize("blocks", [(), (3, 1, 1)])
def test_resuming_at_any_step_goes_on_exactly(blocks: tuple[int, ...]) -> None:
    order = BatchOrder(5, 2, 0, 1, 9, blocks, 2)
    whole = stream(order, 0, 8)
    for first in range(9):
        again = BatchOrder(5, 2, 0, 1, 9, blocks, 2)  # a process that starts anew knows nothing
        assert stream(again, first, 8) == whole[first:]
    for first in (1, 6):
        assert stream(order, first, 8, workers=2) == whole[first:]


def test_loader_processes_change_nothing() -> None:
    order = BatchOrder(6, 2, 0, 1, seed=1)
    assert stream(order, 0, 5) == stream(order, 0, 5, workers=2)


def test_the_loader_leaves_the_global_random_state_alone() -> None:
    import torch

    before = torch.get_rng_state()
    stream(BatchOrder(6, 2, 0, 1, seed=1), 0, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_joined_sources_are_one_after_the_other() -> None:
    joined = JoinedSource([Numbers(2), Numbers(3)])
    assert [joined[i].token for i in range(len(joined))] == ["0", "1", "0", "1", "2"]
    assert joined.tokens == ["0", "1", "0", "1", "2"]
    with pytest.raises(IndexError):
        joined[5]


def test_boxes_without_points_are_left_out() -> None:
    record = FrameRecord(
        token="t", scene="s", timestamp_us=0, image_paths=(Path("none"),) * 6, cam2img=np.zeros((0, 3, 3)),
        lidar2cam=np.zeros((0, 4, 4)), lidar_path=Path("none"), sweeps=(), lidar2ego=np.eye(4),
        ego2global=np.eye(4), boxes=np.arange(18, dtype=np.float32).reshape(2, 9),
        labels=np.array([3, 4]), num_points=np.array([0, 0]), valid=np.array([False, True]),
    )  # fmt: skip
    (kept,) = FileSource([record])._records
    np.testing.assert_array_equal(kept.labels, [4])
    np.testing.assert_array_equal(kept.boxes, record.boxes[1:])


def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset"):
        open_source(tmp_path / "nowhere", "v1.0-mini", "mini_train")


def test_a_frame_is_augmented_anew_in_every_epoch() -> None:
    drawn = [dict(batch) for batch in stream(BatchOrder(3, 3, 0, 1, seed=2), 0, 4)]
    assert all(drawn[0].keys() == epoch.keys() for epoch in drawn)
    for token in drawn[0]:
        assert len({epoch[token] for epoch in drawn}) == 4


def test_a_schedule_is_asked_for_each_epoch() -> None:
    class Grows:
        def at(self, epoch: int):
            return lambda sample, rng: replace(sample, points=sample.points + 10 * epoch)

    batches = training_batches(Numbers(2), BatchOrder(2, 2, 0, 1, seed=0), Grows(), 0, 3, 0)
    found = [sorted(float(sample.points[0, 0]) for sample in batch) for batch in batches]
    assert found == [[0, 1], [10, 11], [20, 21]]


def test_a_buffer_keeps_frames_of_a_block_together_and_yet_shuffles() -> None:
    blocks, buffer = (8,) * 40, 64
    order = permutation(0, 0, 320, blocks, buffer)
    assert sorted(order) == list(range(320))
    windows = order.reshape(-1, buffer)
    for window in windows:  # 64 frames of blocks of 8: eight blocks, all of each
        assert sorted(Counter(window // 8).values()) == [8] * 8
        assert (np.diff(window // 8) != 0).mean() > 0.7, "blocks are mixed within the buffer"
    assert sorted({int(block) for block in windows[0] // 8}) != list(range(8)), "blocks are drawn"
    assert (order != permutation(0, 1, 320, blocks, buffer)).any()
    assert (permutation(0, 0, 320, blocks, 0) == permutation(0, 0, 320)).all(), "no buffer: all frames"


def test_blocks_of_another_source_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks hold 3 frames, the source 4"):
        BatchOrder(4, 1, 0, 1, 0, (1, 2), 2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_what_lies_ready_is_bounded_in_bytes() -> None:
    """A slow training and fast loader processes: they stop at the limit, one batch each beyond at most."""
    source, order = Numbers(40, points=1000), BatchOrder(40, 1, 0, 1, seed=0)
    budget, taken = PrefetchBudget(3, limit=50_000), []
    for batch in training_batches(source, order, add_noise, 0, 20, 3, budget=budget):
        size = size_of([vars(sample) for sample in batch])
        time.sleep(0.02)
        taken.append(budget.ready_bytes)
    assert size > 20_000  # a thousand points of five float32
    assert max(taken) <= 50_000 + 3 * size
    assert max(taken) > 0, "something did lie ready"
    unbounded, most = PrefetchBudget(3, limit=10**12), 0
    for _ in training_batches(source, order, add_noise, 0, 20, 3, budget=unbounded):
        time.sleep(0.02)
        most = max(most, unbounded.ready_bytes)
    assert most > max(taken), "without a limit more lies ready: the limit is what bounds it"


def test_a_batch_larger_than_the_room_still_comes() -> None:
    order = BatchOrder(6, 2, 0, 1, seed=1)
    batches = training_batches(Numbers(6), order, add_noise, 0, 5, 2, budget=PrefetchBudget(2, limit=1))
    assert len(list(batches)) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_broken_frame_stops(workers: int) -> None:
    batches = training_batches(Numbers(6, [3]), BatchOrder(6, 2, 0, 1, seed=1), add_noise, 0, 3, workers)
    with pytest.raises(DataError, match=r"^3\.jpg: is cut short$"):  # the sentence alone, from any process
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_frames_are_skipped_counted_and_listed(workers: int, tmp_path: Path, capsys) -> None:
    path, order = tmp_path / "broken.jsonl", BatchOrder(6, 2, 0, 1, seed=1)
    broken = BrokenFrames(2, path)
    batches = list(training_batches(Numbers(6, [3, 4]), order, add_noise, 0, 6, workers, broken))
    seen = Counter(sample.token for batch in batches for sample in batch)
    assert [len(batch) for batch in batches] == [2] * 6, "batches keep their size"
    assert seen == {"0": 2, "1": 2, "2": 2, "5": 6}, "the next frame that can be read stands in"
    assert len(broken) == 2
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert {entry["token"]: entry["problem"] for entry in listed} == {
        "3": "3.jpg: is cut short",
        "4": "4.jpg: is cut short",
    }
    assert capsys.readouterr().err.count("skipped frame") == 2, "once a frame, not once an epoch"
    again = BrokenFrames(2, path)
    assert len(again) == 2, "a run that goes on has not forgotten"


def test_too_many_broken_frames_stop(tmp_path: Path) -> None:
    order = BatchOrder(6, 2, 0, 1, seed=1)
    broken = BrokenFrames(1, tmp_path / "broken.jsonl")
    with pytest.raises(
        DataError, match=r"2 frames cannot be read, and data\.max_broken_frames allows 1; the last"
    ):
        list(training_batches(Numbers(6, [3, 4]), order, add_noise, 0, 6, 0, broken))


def test_nothing_can_be_read(tmp_path: Path) -> None:
    broken = BrokenFrames(9, tmp_path / "broken.jsonl")
    with pytest.raises(DataError, match="none of the 3 frames can be read: "):
        list(training_batches(Numbers(3, range(3)), BatchOrder(3, 1, 0, 1, 0), add_noise, 0, 1, 0, broken))
