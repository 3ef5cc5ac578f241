"""Detections of several detectors are scored in processes as they are in one."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.formats.nuscenes_tables import read_frames
from pipeline.data.sample import Detections
from pipeline.evaluation.nuscenes_metric import NuScenesMetric
from pipeline.evaluation.scoring import scores_of_each, scoring_tasks
from pipeline.evaluation.submission import EvaluationError, FramePose
from pipeline.runtime.background import in_background


class Watched(NuScenesMetric):
    """Says in which process it scores."""

    def score_draws(self, poses, detections):
        scores, draws, _ = super().score_draws(poses, detections)
        return scores, draws, os.getpid()


@pytest.mark.parametrize("processes", [0, 2])
def test_every_condition_of_every_detector_has_its_own_scores(small_dataset: Path, processes):
    frames = read_frames(small_dataset, "v1.0-mini", "mini_val")
    poses = [FramePose(frame.token, frame.ego2global @ frame.lidar2ego) for frame in frames]

    def found(share: float) -> list[Detections]:
        kept = [np.arange(len(f.boxes)) < share * len(f.boxes) for f in frames]
        return [
            Detections(np.nan_to_num(f.boxes)[k], np.linspace(0.1, 1, k.sum(), dtype=np.float32), f.labels[k])
            for f, k in zip(frames, kept, strict=True)
        ]

    broken = [Detections(one.boxes * np.nan, one.scores, one.labels) for one in found(1)]
    several = [
        {"clean": (poses, found(1)), "no_lidar": (poses, found(0.3))},
        {"clean": (poses, broken), "no_lidar": (poses, found(0.6))},
    ]
    metric = Watched(small_dataset, "v1.0-mini", "mini_val")
    made = iter([*in_background(scoring_tasks(metric, several), processes)(), lambda: "what follows"])
    one, two = scores_of_each(several, made)
    assert next(made)() == "what follows"
    alone = NuScenesMetric(small_dataset, "v1.0-mini", "mini_val")
    for scored, share in ((one["clean"], 1), (one["no_lidar"], 0.3), (two["no_lidar"], 0.6)):
        assert scored()[0] == alone.score(poses, found(share))
    with pytest.raises(EvaluationError, match="not finite"):
        two["clean"]()
    assert (one["clean"]()[2] == os.getpid()) == (processes == 0)
