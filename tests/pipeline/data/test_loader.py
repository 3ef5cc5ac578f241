"""The loader's order: complete, disjoint over ranks, resumable, and independent of worker counts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.loader import BatchOrder, FileSource, JoinedSource, open_source, training_batches
from pipeline.data.sample import DataError, Sample
from pipeline.data.tables import FrameRecord


class Numbers:
    """A source whose samples carry their index."""

    def __init__(self, count: int) -> None:
        self.tokens = [str(i) for i in range(count)]
        self.scenes = ["s"] * count

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            token=str(index),
            scene="s",
            images=np.zeros((1, 1, 1, 3), np.uint8),
            points=np.full((1, 5), index, np.float32),
            lidar2img=np.eye(4)[None],
            boxes=np.zeros((0, 9), np.float32),
            labels=np.zeros(0, np.int64),
            lidar2ego=np.eye(4),
            ego2global=np.eye(4),
        )


def add_noise(sample: Sample, rng: np.random.Generator) -> Sample:
    return replace(sample, points=sample.points + rng.normal(size=(1, 5)).astype(np.float32))


def stream(order: BatchOrder, first: int, last: int, workers: int = 0) -> list[list[tuple[str, float]]]:
    batches = training_batches(Numbers(order.frames), order, add_noise, first, last, workers)
    return [[(s.token, float(s.points[0, 0])) for s in batch] for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_deals_every_frame_once(world_size: int) -> None:
    orders = [BatchOrder(12, 2, rank, world_size, seed=4) for rank in range(world_size)]
    steps = 12 // (2 * world_size)
    for epoch in range(3):
        dealt = Counter(
            at
            for order in orders
            for step in range(epoch * steps, (epoch + 1) * steps)
            for at in order.batch(step)
        )
        assert dealt == Counter({(epoch, frame): 1 for frame in range(12)})


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


def test_resuming_goes_on_exactly() -> None:
    order = BatchOrder(5, 2, 0, 1, seed=9)
    assert stream(order, 0, 8)[3:] == stream(order, 3, 8)


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
        token="t", scene="s", timestamp_us=0, image_paths=(), cam2img=np.zeros((0, 3, 3)),
        lidar2cam=np.zeros((0, 4, 4)), lidar_path=Path("none"), sweeps=(), lidar2ego=np.eye(4),
        ego2global=np.eye(4), boxes=np.arange(18, dtype=np.float32).reshape(2, 9),
        labels=np.array([3, 4]), num_points=np.array([0, 1]),
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
