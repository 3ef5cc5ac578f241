"""The trunk of a detector: what does not train, nor anything before it. All arms of a cohort share it.

Each branch is a chain of stages, such as backbone and neck. Its leading stages without anything that trains
belong to the trunk; the stages after them, and the head, are an arm's own.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.detector.backbones.frozen import is_frozen
from pipeline.detector.backbones.image_branch import ImageBranch
from pipeline.detector.backbones.lidar_branch import LidarBranch


@dataclass(frozen=True)
class TrunkFeatures:
    """What the trunk made of a batch.

    Attributes:
        images: result of the image branch's leading stages; without any the (masked) images.
        points: result of the LiDAR branch's leading stages; without any the point clouds.
        stages: how many stages of the image branch and of the LiDAR branch have run.
        begun: an event from before the image branch, on a GPU.
    """

    images: Any
    points: Any
    stages: tuple[int, int]
    begun: "torch.cuda.Event | None" = None


class Trunk(ImageBranch, LidarBranch):
    """Mixin of a detector that cuts both branches into the trunk and the rest.

    Attributes:
        trunk_stages: how many leading stages of the image branch and of the LiDAR branch are the trunk; see
            ``find_trunk``.
    """

    trunk_stages: tuple[int, int] = (0, 0)
    _lidar_stream: Any = None  # set on the first use, when the GPU is known

    @property
    def trunk_modules(self) -> list[nn.Module]:
        """The modules of the trunk."""
        images, points = self.trunk_stages
        stages = (*self.image_stages[:images], *self.point_stages[:points])
        return [module for stage in stages for module in stage]

    def find_trunk(self) -> None:
        """Set ``trunk_stages`` by what trains now: parameters, statistics of batch norms, dropout."""
        mode = self.training
        self.train()
        with torch.enable_grad():
            self.trunk_stages = (_num_frozen(self.image_stages), _num_frozen(self.point_stages))
        self.train(mode)

    def copy_beside_trunk(self) -> Self:
        """Return a copy of the detector that shares the modules of the trunk with it."""
        return copy.deepcopy(self, {id(module): module for module in self.trunk_modules})

    def run_trunk(self, batch_inputs: dict[str, Any]) -> TrunkFeatures:
        """Run the trunk on a batch.

        On a GPU the branches run on two streams. The LiDAR branch waits for counts from the device: of
        voxels, and of outputs of every sparse down-sampling. Its kernels are small, so the GPU would idle
        between them without the image branch. In training the LiDAR trunk depends on the points alone, so it
        runs beside the end of the step before.

        Args:
            batch_inputs: see ``CmtDetector.extract_feat``.
        """
        images, points = batch_inputs["imgs"], batch_inputs["points"]
        stages = self.active_trunk
        if not images.is_cuda:
            return TrunkFeatures(
                self.images_before(images, stages[0]), self.points_before(points, stages[1]), stages
            )
        begun = torch.cuda.Event()  # type: ignore[no-untyped-call]
        begun.record(torch.cuda.current_stream(images.device))
        if not stages[1]:
            return TrunkFeatures(self.images_before(images, stages[0]), points, stages, begun)
        maps, canvas = self._beside_one_another(
            lambda: self.images_before(images, stages[0]),
            lambda: self.points_before(points, stages[1]),
            points,
            batch_inputs.get("ready") if self.training else None,
        )
        return TrunkFeatures(maps, canvas, stages, begun)

    def run_after_trunk(self, trunk: TrunkFeatures) -> tuple[Tensor, Tensor]:
        """Run what follows the trunk in both branches; see ``CmtDetector.extract_feat``."""
        images, points = trunk.stages
        if trunk.begun is None or points:
            maps = self.images_after(trunk.images, images)
            return self.points_after(trunk.points, points), maps
        maps, bev = self._beside_one_another(
            lambda: self.images_after(trunk.images, images),
            lambda: self.points_after(trunk.points, points),
            trunk.points,
            trunk.begun,
        )
        return bev, maps

    @property
    def active_trunk(self) -> tuple[int, int]:
        """``trunk_stages``, but none where branches are detected with through graphs, each as a whole."""
        return (0, 0) if self.graphs is not None else self.trunk_stages

    def _beside_one_another(
        self,
        run_images: Callable[[], Any],
        run_points: Callable[[], Any],
        points: Sequence[Tensor],
        since: "torch.cuda.Event | None",
    ) -> tuple[Any, Any]:
        """Run LiDAR work on a stream of its own beside image work.

        Args:
            run_images: launches the image work; it does not wait for the device.
            run_points: launches the LiDAR work.
            points: what it reads.
            since: it may begin at this event; None: after all that was launched before.
        """
        main = torch.cuda.current_stream(points[0].device)
        if self._lidar_stream is None:
            self._lidar_stream, since = _lidar_stream(points[0].device), None
        if since is None:
            self._lidar_stream.wait_stream(main)
        else:
            self._lidar_stream.wait_event(since)
        maps = run_images()
        with torch.cuda.stream(self._lidar_stream):
            made = run_points()
        main.wait_stream(self._lidar_stream)
        for x in (made,) if isinstance(made, Tensor) else made:
            x.record_stream(main)  # keeps its memory until the main stream has read it
        for x in points:
            x.record_stream(self._lidar_stream)
        return maps, made


@cache
def _lidar_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all LiDAR branches: the allocator keeps memory for each stream by itself."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _num_frozen(stages: Sequence[Sequence[nn.Module]]) -> int:
    """Return how many leading stages are frozen."""
    for i, stage in enumerate(stages):
        if not all(is_frozen(module) for module in stage):
            return i
    return len(stages)
