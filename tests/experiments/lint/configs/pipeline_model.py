"""A pipeline for another model: image size, range, classes and columns of the points are not this one's."""

_base_ = ["../../../../experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"]

_image = dict(
    H=900,
    W=1600,
    final_dim=(640, 1600),  # finding: pipeline-model
    resize_lim=(0.94, 1.25),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    rand_flip=True,
)
_pipeline = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D"),
    dict(
        type="PointsRangeFilter",
        point_cloud_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],  # finding: pipeline-model
    ),
    dict(
        type="ObjectNameFilter",
        classes=["car", "truck"],  # finding: pipeline-model
    ),
    dict(type="ResizeCropFlipImage", data_aug_conf=_image),
    dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"]),
]
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            pipeline=_pipeline,
            metainfo=dict(classes=["truck", "car"]),  # finding: pipeline-model
        )
    )
)
model = dict(
    pts_voxel_layer=dict(
        point_cloud_range=[-54.0, -54.0, -3.0, 54.0, 54.0, 3.0],  # finding: pipeline-model
    )
)
param_scheduler = [dict(type="OneCycleLR", eta_max=1e-3)]  # finding: cannot-build
