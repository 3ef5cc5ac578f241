"""A config of mmcv 1.x in the style of CMT's: cameras alone, at a size that trains on a CPU."""
# ruff: noqa: C408  configs are written with dict()

plugin = True
plugin_dir = "projects/mmdet3d_plugin/"
_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
names = [
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle",
    "pedestrian", "traffic_cone",
]  # fmt: skip
normalise = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)
cut = dict(
    resize_lim=(0.28, 0.35),
    final_dim=(48, 112),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    H=225,
    W=400,
    rand_flip=True,
)
train_pipeline = [
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(
        type="GlobalRotScaleTransImage",
        rot_range=[-0.3925, 0.3925],
        translation_std=[0, 0, 0],
        scale_ratio_range=[0.95, 1.05],
        reverse_angle=True,
        training=True,
    ),
    dict(type="ObjectRangeFilter", point_cloud_range=_range),
    dict(type="ObjectNameFilter", classes=names),
    dict(type="ResizeCropFlipImage", data_aug_conf=cut, training=True),
    dict(type="NormalizeMultiviewImage", **normalise),
    dict(type="PadMultiViewImage", size_divisor=16),
    dict(type="DefaultFormatBundle3D", class_names=names),
    dict(type="Collect3D", keys=["img", "gt_bboxes_3d", "gt_labels_3d"]),
]
test_pipeline = [
    dict(type="LoadMultiViewImageFromFiles"),
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1333, 800),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type="ResizeCropFlipImage", data_aug_conf=cut, training=False),
            dict(type="NormalizeMultiviewImage", **normalise),
            dict(type="PadMultiViewImage", size_divisor=16),
            dict(type="DefaultFormatBundle3D", class_names=names, with_label=False),
            dict(type="Collect3D", keys=["img"]),
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
    img_backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        norm_eval=True,
        style="pytorch",
    ),
    img_neck=dict(type="CPFPN", in_channels=[32, 64], out_channels=96, num_outs=2),
    pts_bbox_head=dict(
        type="CmtImageHead",
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
        separate_head=dict(type="SeparateTaskHead", init_bias=-2.19, final_kernel=1),
        transformer=dict(
            type="CmtImageTransformer",
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
optimizer = dict(
    type="AdamW",
    lr=0.0001,
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.1)}),
    weight_decay=0.01,
)
optimizer_config = dict(
    type="GradientCumulativeOptimizerHook", cumulative_iters=2, grad_clip=dict(max_norm=35, norm_type=2)
)
lr_config = dict(
    policy="CosineAnnealing", warmup="linear", warmup_iters=5, warmup_ratio=1.0 / 3, min_lr_ratio=1e-3
)
total_epochs = 2
checkpoint_config = dict(interval=1)
load_from = None
resume_from = None
workflow = [("train", 1)]
