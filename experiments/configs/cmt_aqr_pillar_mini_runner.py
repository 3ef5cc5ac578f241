"""The mini model under mmengine's own Runner: ``python tools/train.py`` of mmdet3d takes this file as it is.

Data: biaswise data synth --out data/mini
      biaswise data infos data/mini --split mini_train --out data/mini/nuscenes_infos_train.pkl
      biaswise data infos data/mini --split mini_val --out data/mini/nuscenes_infos_val.pkl
"""
# ruff: noqa: C408  configs of mmengine are written with dict()

_base_ = "./cmt_aqr_pillar_mini.py"
custom_imports = dict(imports=["pipeline.detector.runner"], allow_failed_imports=False)

_root = "data/mini/"
_classes = [
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
]
_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
_image = dict(
    H=225,
    W=400,
    final_dim=(96, 240),
    resize_lim=(0.6, 0.75),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    rand_flip=True,
)
_load = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=10, load_dim=5, use_dim=5),  # these data have none
    dict(type="LoadMultiViewImageFromFiles", num_views=6),
]
_train_pipeline = [
    *_load,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(
        type="GlobalRotScaleTransAll",
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.5],
    ),
    dict(type="CustomRandomFlip3D", flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type="PointsRangeFilter", point_cloud_range=_range),
    dict(type="ObjectRangeFilter", point_cloud_range=_range),
    dict(type="ObjectNameFilter", classes=_classes),
    dict(type="PointShuffle"),
    dict(type="ResizeCropFlipImage", data_aug_conf=_image, training=True),
    dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"]),
]
_test_pipeline = [
    *_load,
    dict(type="ResizeCropFlipImage", data_aug_conf=_image, training=False),
    dict(type="Pack3DDetInputs", keys=["points", "img"]),
]
_frames = dict(
    type="NuScenesDataset",
    data_root=_root,
    metainfo=dict(classes=_classes, version="v1.0-mini"),
    modality=dict(use_lidar=True, use_camera=True),
    data_prefix=dict(
        pts="samples/LIDAR_TOP",
        sweeps="sweeps/LIDAR_TOP",
        CAM_FRONT="samples/CAM_FRONT",
        CAM_FRONT_RIGHT="samples/CAM_FRONT_RIGHT",
        CAM_FRONT_LEFT="samples/CAM_FRONT_LEFT",
        CAM_BACK="samples/CAM_BACK",
        CAM_BACK_LEFT="samples/CAM_BACK_LEFT",
        CAM_BACK_RIGHT="samples/CAM_BACK_RIGHT",
    ),
    box_type_3d="LiDAR",
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**_frames, ann_file="nuscenes_infos_train.pkl", pipeline=_train_pipeline, test_mode=False),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**_frames, ann_file="nuscenes_infos_val.pkl", pipeline=_test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="NuScenesMetric", data_root=_root, ann_file=_root + "nuscenes_infos_val.pkl", metric="bbox"
)
test_evaluator = val_evaluator

optim_wrapper = dict(constructor="CmtOptimWrapperConstructor")
param_scheduler = [dict(type="CosineAnnealingLR", begin=0, end=6, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=6)
val_cfg = dict()
test_cfg = dict()
