"""A pipeline brought along from another version: names, keys and values that nobody reads."""

_base_ = ["../../../../experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"]

_image = dict(
    H=900,
    W=1600,
    final_dim=(320, 800),
    resize_lim=(0.47, 0.625),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(-5.4, 5.4),
    rand_flip=True,
)
_pipeline = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(
        type="LoadPointsFromMultiSweeps",
        sweeps_num=10,
        pad_empty_sweeps=True,  # finding: refused-value
    ),
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D"),
    dict(type="GlobalRotScaleTrans", rot_range=[-0.785, 0.785]),  # finding: unknown-transform
    dict(
        type="CustomRandomFlip3D",
        flip_ratio=0.5,  # finding: unused-key
    ),
    dict(
        type="ResizeCropFlipImage",  # finding: refused-value
        data_aug_conf=_image,
    ),
    dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"]),
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=_pipeline)))
