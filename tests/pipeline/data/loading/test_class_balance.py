"""CBGS: as many frames as mmdet3d's own wrapper draws, and they hold what they were drawn for."""

from collections import Counter
from importlib import import_module

import numpy as np
import pytest

from pipeline.config.settings import CLASSES
from pipeline.data.loading.class_balance import BalancedSource, resample
from pipeline.data.sample import DataError


class Frames:
    """A source of names alone; also a dataset as CBGSDataset wants it."""

    def __init__(self, labels):
        self.labels = [frozenset(held) for held in labels]
        self.tokens = [f"t{i}" for i in range(len(labels))]
        self.scenes = ["s"] * len(labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.tokens[index]

    def get_cat_ids(self, index):
        return self.labels[index]


@pytest.fixture(scope="module")
def frames():
    """Four hundred frames: cars nearly everywhere, trailers in one of thirty."""
    rng = np.random.default_rng(0)
    shares = np.array([0.9, 0.5, 0.06, 0.12, 0.03, 0.3, 0.2, 0.2, 0.8, 0.4])
    return Frames([np.flatnonzero(rng.random(10) < shares).tolist() for _ in range(400)])


def test_counts_are_those_of_mmdet3d(frames):
    compat = import_module("pipeline.detector.openmmlab.compat")
    compat.prepare()
    from mmdet3d.datasets import CBGSDataset

    theirs = CBGSDataset.__new__(CBGSDataset)
    theirs._metainfo = {"classes": CLASSES}
    assert len(resample(frames.labels, 0)) == len(theirs._get_sample_indices(frames))


def test_every_class_is_drawn_a_tenth_of_all_times(frames):
    drawn = resample(frames.labels, 7)
    total = sum(len(held) for held in frames.labels)
    block = total // 10
    assert len(drawn) in range(10 * (block - 1), total + 1)  # each block is cut to an integer
    for label in range(10):
        members = drawn[label * block : (label + 1) * block - 10]  # less what the cuts may shift
        assert all(label in frames.labels[i] for i in members)
    met = Counter(label for i in drawn for label in frames.labels[i])
    before = Counter(label for held in frames.labels for label in held)
    assert met[4] / before[4] > 3 * met[0] / before[0]  # trailers gain on cars


def test_drawn_from_the_seed_alone(frames):
    assert resample(frames.labels, 1) == resample(frames.labels, 1)
    assert resample(frames.labels, 1) != resample(frames.labels, 2)


def test_a_class_that_no_frame_holds_draws_nothing():
    drawn = resample([frozenset({0}), frozenset({0, 8})] * 20, 0)
    assert len(drawn) == 2 * int(60 / 10)


def test_frames_without_any_box_are_refused():
    with pytest.raises(DataError, match="none of the 7 training frames has a valid box of the ten classes"):
        BalancedSource(Frames([()] * 7), 0)


def test_a_balanced_source_names_what_it_gives(frames):
    source = BalancedSource(frames, 3)
    assert len(source) == len(source.tokens) == len(source.scenes) == len(source.labels)
    for index in (0, len(source) // 2, len(source) - 1):
        assert source[index] == source.tokens[index]
        assert source.labels[index] == frames.labels[source.frames[index]]
