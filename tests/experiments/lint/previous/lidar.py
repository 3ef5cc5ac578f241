"""A config of mmcv 1.x in the style of CMT's: the LiDAR alone, at a size that trains on a CPU."""
# ruff: noqa: C408  configs are written with dict()

plugin = True
plugin_dir = "projects/mmdet3d_plugin/"
_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
names = [
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle",
    "pedestrian", "traffic_cone",
]  # fmt: skip
load = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4]),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=10, use_dim=[0, 1, 2, 3, 4]),
]
sampler = dict(
    data_root=None,
    info_path="data/mini/nuscenes_dbinfos_train.pkl",
    rate=1.0,
    prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict(car=5, truck=5)),
    classes=names,
    sample_groups=dict(car=2, truck=3),
    points_loader=dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4]),
)
train_pipeline = [
    *load,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="ObjectSample", db_sampler=sampler),
    dict(
        type="GlobalRotScaleTrans",
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.5],
    ),
    dict(type="RandomFlip3D", sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type="PointsRangeFilter", point_cloud_range=_range),
    dict(type="ObjectRangeFilter", point_cloud_range=_range),
    dict(type="ObjectNameFilter", classes=names),
    dict(type="PointShuffle"),
    dict(type="DefaultFormatBundle3D", class_names=names),
    dict(type="Collect3D", keys=["points", "gt_bboxes_3d", "gt_labels_3d"]),
]
test_pipeline = [
    *load,
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1333, 800),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type="RandomFlip3D"),
            dict(type="DefaultFormatBundle3D", class_names=names, with_label=False),
            dict(type="Collect3D", keys=["points"]),
        ],
    ),
]
frames = dict(type="CustomNuScenesDataset", data_root="data/mini/", classes=names, box_type_3d="LiDAR")
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=0,
    train=dict(ann_file="data/mini/nuscenes_infos_train.pkl", pipeline=train_pipeline, **frames),
    val=dict(ann_file="data/mini/nuscenes_infos_val.pkl", pipeline=test_pipeline, test_mode=True, **frames),
    test=dict(ann_file="data/mini/nuscenes_infos_val.pkl", pipeline=test_pipeline, test_mode=True, **frames),
)
attention = dict(embed_dims=96, num_heads=2, dropout=0.1)
weights = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
model = dict(
    type="CmtDetector",
    pts_branch=dict(
        type="PillarBranch",
        point_cloud_range=_range,
        grid_shape=(64, 64),
        max_points=16,
        voxel_encoder=dict(
            type="PillarFeatureNet",
            in_channels=5,
            feat_channels=[32],
            with_distance=False,
            legacy=False,
            norm_cfg=dict(type="BN1d", eps=1e-3, momentum=0.01),
        ),
        middle_encoder=dict(type="PointPillarsScatter", in_channels=32),
        backbone=dict(
            type="SECOND",
            in_channels=32,
            out_channels=[32, 64],
            layer_nums=[2, 3],
            layer_strides=[2, 2],
            norm_cfg=dict(type="BN", eps=1e-3, momentum=0.01),
        ),
        neck=dict(
            type="SECONDFPN",
            in_channels=[32, 64],
            out_channels=[64, 64],
            upsample_strides=[0.5, 1],
            use_conv_for_no_stride=True,
            norm_cfg=dict(type="BN", eps=1e-3, momentum=0.01),
        ),
    ),
    pts_bbox_head=dict(
        type="CmtLidarHead",
        in_channels=128,
        num_query=24,
        hidden_dim=96,
        depth_num=8,
        downsample_scale=8,
        scalar=1,
        noise_scale=0.5,
        common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        tasks=[dict(num_class=10, class_names=names)],
        bbox_coder=dict(
            type="MultiTaskBBoxCoder",
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            pc_range=_range,
            max_num=100,
            voxel_size=[0.075, 0.075, 0.2],
            num_classes=10,
        ),
        separate_head=dict(type="SeparateTaskHead", init_bias=-2.19, final_kernel=3),
        transformer=dict(
            type="CmtLidarTransformer",
            decoder=dict(
                type="PETRTransformerDecoder",
                return_intermediate=True,
                num_layers=2,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    with_cp=False,
                    attn_cfgs=[
                        dict(type="MultiheadAttention", **attention),
                        dict(type="PETRMultiheadFlashAttention", **attention),
                    ],
                    ffn_cfgs=dict(
                        type="FFN", embed_dims=96, feedforward_channels=192, num_fcs=2, ffn_drop=0.0
                    ),
                    feedforward_channels=192,
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type="L1Loss", reduction="mean", loss_weight=0.25),
    ),
    train_cfg=dict(
        pts=dict(
            assigner=dict(
                type="HungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                iou_cost=dict(type="IoUCost", weight=0.0),
                pc_range=_range,
                code_weights=weights,
            ),
            grid_size=[1440, 1440, 40],
            code_weights=weights,
        )
    ),
)
optimizer = dict(type="AdamW", lr=0.0001, weight_decay=0.01)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
fp16 = dict(loss_scale=512.0)
lr_config = dict(policy="step", warmup="exp", warmup_iters=3, warmup_ratio=0.1, step=[1])
runner = dict(type="EpochBasedRunner", max_epochs=2)
checkpoint_config = dict(interval=1)
load_from = None
resume_from = None
workflow = [("train", 1)]
