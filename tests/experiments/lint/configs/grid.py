"""Voxels of 0.08 m on the grid of 0.075 m."""

_base_ = ["../../../../experiments/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py"]

model = dict(
    pts_voxel_layer=dict(voxel_size=[0.08, 0.08, 0.2]),
    pts_middle_encoder=dict(sparse_shape=[41, 1440, 1440]),  # finding: grid
)
