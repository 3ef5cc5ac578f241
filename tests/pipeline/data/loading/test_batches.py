"""What an augmentation draws depends on the seed, the epoch and the frame, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.loading.batches import training_batches
from pipeline.data.loading.sampler import BatchOrder
from pipeline.data.sample import Sample

FRAMES = 3


class Frames:
    """Small frames without boxes."""

    tokens = tuple(f"frame{number}" for number in range(FRAMES))
    scenes = ("scene",) * FRAMES
    labels = (frozenset[int](),) * FRAMES
    blocks = ()

    def __len__(self):
        return FRAMES

    def __getitem__(self, index):
        images, matrices = np.zeros((6, 2, 2, 3), np.uint8), np.zeros((6, 4, 4))
        points, boxes, labels = np.zeros((1, 5), np.float32), np.zeros((0, 9), np.float32), np.zeros(0, int)
        names = self.tokens[index], "scene"
        return Sample(*names, images, points, matrices, boxes, labels, np.eye(4), np.eye(4))


def drawn(seed, first=0, last=2 * FRAMES):
    """(token, number drawn for it) of each step: two epochs."""

    def draw(sample, rng):
        return replace(sample, points=np.full((1, 5), rng.random(), np.float32))

    order = BatchOrder(FRAMES, batch_size=1, rank=0, world_size=1, seed=seed)
    batches = training_batches(Frames(), order, draw, first, last, workers=0)
    return [(sample.token, float(sample.points[0, 0])) for batch in batches for sample in batch]


def test_two_seeds_draw_otherwise():
    assert set(drawn(1)).isdisjoint(drawn(2))


def test_one_seed_draws_the_same_wherever_it_begins():
    assert drawn(1) == drawn(1)
    assert drawn(1, first=4) == drawn(1)[4:]


def test_frames_and_epochs_draw_otherwise():
    assert len({number for _, number in drawn(1)}) == 2 * FRAMES


@pytest.mark.parametrize("seed", [1, 2])
def test_an_epoch_has_every_frame_once(seed):
    tokens = [token for token, _ in drawn(seed)]
    assert sorted(tokens[:FRAMES]) == sorted(tokens[FRAMES:]) == list(Frames.tokens)
