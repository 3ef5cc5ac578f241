"""nuScenes as CMT trains on it, less the image size: ten sweeps, GT sampling with image paste, CBGS.

Names and values of junjie18/CMT, projects/configs/fusion, in the layout of mmdet3d 1.4: normalising and
padding stand in ``model.data_preprocessor``. A config puts its ``ResizeCropFlipImage`` between these lists.
"""
# ruff: noqa: C408  configs of mmengine are written with dict()

default_scope = "mmdet3d"
custom_imports = dict(imports=["pipeline.detector.runner"], allow_failed_imports=False)  # for tools/train.py

_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
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
_root = "data/nuscenes/"

_load = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=10, load_dim=5, use_dim=5),
    dict(type="LoadMultiViewImageFromFiles"),
]
_augment = [
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(
        type="UnifiedObjectSample",
        sample_2d=True,  # paste the images of the sampled objects too
        mixup_rate=0.5,  # of old and pasted pixels
        db_sampler=dict(
            type="UnifiedDataBaseSampler",
            data_root=_root,
            info_path=_root + "nuscenes_dbinfos_train.pkl",
            rate=1.0,
            prepare=dict(
                filter_by_difficulty=[-1],
                filter_by_min_points=dict.fromkeys(_classes, 5),
            ),
            classes=_classes,
            sample_groups=dict(
                car=2,
                truck=3,
                construction_vehicle=7,
                bus=4,
                trailer=6,
                barrier=2,
                motorcycle=6,
                bicycle=6,
                pedestrian=2,
                traffic_cone=2,
            ),
            points_loader=dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
        ),
    ),
    dict(type="ModalMask3D", mode="train"),
    dict(
        type="GlobalRotScaleTransAll",
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.5],
    ),
    dict(
        type="CustomRandomFlip3D",
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
    dict(type="PointsRangeFilter", point_cloud_range=_range),
    dict(type="ObjectRangeFilter", point_cloud_range=_range),
    dict(type="ObjectNameFilter", classes=_classes),
    dict(type="PointShuffle"),
]
_pack = [dict(type="Pack3DDetInputs", keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"])]
_pack_test = [dict(type="Pack3DDetInputs", keys=["points", "img"])]

_frames = dict(
    type="NuScenesDataset",
    data_root=_root,
    metainfo=dict(classes=_classes),
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
    num_workers=6,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CBGSDataset",
        dataset=dict(**_frames, ann_file="nuscenes_infos_train.pkl", test_mode=False, use_valid_flag=True),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=6,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**_frames, ann_file="nuscenes_infos_val.pkl", test_mode=True),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="NuScenesMetric", data_root=_root, ann_file=_root + "nuscenes_infos_val.pkl", metric="bbox"
)
test_evaluator = val_evaluator
