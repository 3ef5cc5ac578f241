"""Steps in an order that loses what was done, and an evaluation that is augmented."""

_base_ = ["../../../../experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"]

_image = dict(
    H=900,
    W=1600,
    final_dim=(320, 800),
    resize_lim=(0.47, 0.625),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    rand_flip=True,
)
_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
_pipeline = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D"),
    dict(type="PointsRangeFilter", point_cloud_range=_range),
    dict(
        type="GlobalRotScaleTransAll",  # finding: misplaced
        rot_range=[-0.785, 0.785],
    ),
    dict(type="ResizeCropFlipImage", data_aug_conf=_image),
    dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"]),
    dict(type="PointShuffle"),  # finding: misplaced
]
_test_pipeline = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadMultiViewImageFromFiles"),
    dict(
        type="ResizeCropFlipImage",
        data_aug_conf=_image,
        training=True,  # finding: misplaced
    ),
    dict(type="Pack3DDetInputs", keys=["points", "img"]),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=_test_pipeline))
