"""A source whose samples carry their index, some of which cannot be read."""

from collections.abc import Sequence

import numpy as np

from pipeline.data.sample import DataError, Sample


class Numbers:
    def __init__(self, count: int, broken: Sequence[int] = (), points: int = 1) -> None:
        self.tokens = [str(i) for i in range(count)]
        self.scenes = ["s"] * count
        self.labels = [frozenset[int]()] * count
        self.blocks: tuple[int, ...] = ()
        self._broken, self._points = broken, points

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        if index in self._broken:
            raise DataError(f"{index}.jpg: is cut short")
        return Sample(
            token=str(index),
            scene="s",
            images=np.zeros((1, 1, 1, 3), np.uint8),
            points=np.full((self._points, 5), index, np.float32),
            lidar2img=np.eye(4)[None],
            boxes=np.zeros((0, 9), np.float32),
            labels=np.zeros(0, np.int64),
            lidar2ego=np.eye(4),
            ego2global=np.eye(4),
        )
