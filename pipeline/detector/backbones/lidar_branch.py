"""The LiDAR branch of ``CmtDetector``: point clouds to a BEV map, by CMT's five modules or by one."""

from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor, nn

from pipeline.detector.acceleration.cuda_graph import Graphs, replayed
from pipeline.detector.acceleration.memory_format import maps_channels_last
from pipeline.detector.acceleration.training_graph import TrainGraphs
from pipeline.detector.backbones.frozen import run_part
from pipeline.detector.backbones.half_encoder import encode
from pipeline.detector.backbones.sparse_conv import build_sparse_encoder
from pipeline.detector.backbones.voxelization import VoxelLayer


class BranchError(ValueError):
    """The config gives an incomplete LiDAR branch, or two; or branches that are not those of the head."""


class LidarBranch(nn.Module):
    """Mixin of a detector that holds the modules of its LiDAR branch.

    They are attributes of the detector itself, under the names of CMT's config and checkpoints.

    Attributes:
        has_lidar: whether there is a branch.
        pts_branch: one module from points to a BEV map; None for CMT's own branch.
        graphs: CUDA graphs through which detection runs; None: kernel by kernel.
        lidar_graphs: CUDA graphs of a frozen ``pts_backbone`` in training; None: kernel by kernel.
    """

    has_lidar: bool = True
    pts_branch: nn.Module | None
    graphs: Graphs | None
    lidar_graphs: TrainGraphs | None = None

    def build_lidar_branch(
        self,
        pts_branch: dict[str, Any] | None,
        parts: dict[str, dict[str, Any] | None],
        half_sparse_encoder: bool = True,
    ) -> None:
        """Build the branch that the config gives.

        Args:
            pts_branch: config of one module, or None.
            parts: name -> config of CMT's own five modules, or None.
            half_sparse_encoder: see ``CmtDetector``.

        Raises:
            BranchError: both branches, or some of the five modules.
        """
        self.pts_branch = MODELS.build(pts_branch) if pts_branch is not None else None
        given = {name: cfg for name, cfg in parts.items() if cfg is not None}
        incomplete = bool(given) and len(given) < len(parts)
        self.has_lidar = bool(given) or pts_branch is not None
        if (given and pts_branch is not None) or incomplete:
            got = [*(["pts_branch"] if pts_branch is not None else []), *given]
            raise BranchError(
                f"model: expected either pts_branch or all of {', '.join(parts)}; got {', '.join(got)}"
            )
        if not given:
            return
        middle = given["pts_middle_encoder"]
        self.pts_voxel_layer = VoxelLayer(**given["pts_voxel_layer"], sparse_shape=middle["sparse_shape"])
        self.pts_voxel_encoder = MODELS.build(given["pts_voxel_encoder"])
        self.pts_middle_encoder = build_sparse_encoder(middle, half_sparse_encoder)
        self.pts_backbone = MODELS.build(given["pts_backbone"])
        self.pts_neck = MODELS.build(given["pts_neck"])

    def point_features(self, points: list[Tensor]) -> Tensor:
        """Run the branch on point clouds.

        Args:
            points: per sample (N, C) float: x, y, z in m, then other columns; N may be 0.

        Returns:
            The BEV map (B, C', h, w). Without a branch it is empty.
        """
        return self.points_after(points, 0)

    @property
    def point_stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of each stage of the branch, in the order of computation."""
        if not self.has_lidar:
            return ()
        if self.pts_branch is not None:
            return ((self.pts_branch,),)
        voxels = (self.pts_voxel_layer, self.pts_voxel_encoder, self.pts_middle_encoder)
        return (voxels, (self.pts_backbone,), (self.pts_neck,))

    def points_before(self, points: list[Tensor], stages: int) -> Any:
        """Run the first stages on point clouds; ``points_after`` runs the others.

        Args:
            points: see ``point_features``.
            stages: how many; with 0 the clouds are returned.
        """
        if stages == 0:
            return points
        x: Any = self._canvas(points)
        if stages > 1:
            x = self._levels(x)
        return run_part(self.pts_neck, x)[0] if stages > 2 else x

    def points_after(self, x: Any, stages: int) -> Tensor:
        """Run the stages that ``points_before`` has not run; returns the BEV map (B, C', h, w).

        Args:
            x: what ``points_before`` returned.
            stages: how many stages it has run.
        """
        if not self.has_lidar:
            return x[0].new_zeros(len(x), 0, 0, 0)
        if stages == len(self.point_stages):
            return x
        if stages == 2:
            return run_part(self.pts_neck, x)[0]
        canvas = x if stages else self._canvas(x)
        return canvas if self.pts_branch is not None else replayed(self, "bev", self._bev_maps, (canvas,))[0]

    def _canvas(self, points: list[Tensor]) -> Tensor:
        """Run the first stage: points to a map, which is the BEV map if the branch is one module."""
        if self.pts_branch is not None:
            return self.pts_branch(points)
        voxels = self.pts_voxel_layer(points)
        features = self.pts_voxel_encoder(voxels.points, voxels.counts, voxels.coords)
        return self._encode_sparsely(features, voxels.coords, len(points))

    def _levels(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """Run a frozen ``pts_backbone``, in training through its graphs."""
        canvas = maps_channels_last(canvas)
        if self.lidar_graphs is None or not self.training:
            return tuple(run_part(self.pts_backbone, canvas))
        return self.lidar_graphs.run_frozen(self.pts_backbone, canvas)

    def _bev_maps(self, canvas: Tensor) -> tuple[Tensor]:
        return (run_part(self.pts_neck, run_part(self.pts_backbone, maps_channels_last(canvas)))[0],)

    def _encode_sparsely(self, features: Tensor, coords: Tensor, batch: int) -> Tensor:
        """Run the middle encoder, also for one voxel (a masked point cloud) and for none (a lost one)."""
        if len(features) > 1:
            return encode(self.pts_middle_encoder, features, coords, batch)
        if not len(features):
            # Encode one voxel and multiply by 0: the map of an empty cloud is 0 everywhere, and every
            # parameter gets a gradient, because all workers must have gradients of the same parameters.
            one = features.new_zeros(1, features.shape[1])
            return 0 * self._encode_sparsely(one, coords.new_zeros(1, 4), batch)
        self.pts_middle_encoder.eval()  # batch norm cannot compute statistics of one value
        try:
            return self.pts_middle_encoder(features, coords, batch)
        finally:
            self.train(self.training)
