"""A config of mmcv 1.x in the style of CMT's, with every kind of section: both sensors, ResNet-50."""
# ruff: noqa: C408  configs are written with dict()

plugin = True
plugin_dir = "projects/mmdet3d_plugin/"

pc_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
voxel_size = [0.1, 0.1, 0.2]
names = [
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle",
    "pedestrian", "traffic_cone",
]  # fmt: skip
root = "data/nuscenes/"
grid = [1024, 1024, 40]
weights = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
unused_switch = 3
normalise = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)
cut = {
    "resize_lim": (0.47, 0.625),
    "final_dim": (320, 800),
    "bot_pct_lim": (0.0, 0.0),
    "rot_lim": (0.0, 0.0),
    "H": 900,
    "W": 1600,
    "rand_flip": True,
}
points = dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4])
load = [
    points,
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=10, use_dim=[0, 1, 2, 3, 4]),
    dict(type="LoadMultiViewImageFromFiles"),
]
sampler = dict(
    type="UnifiedDataBaseSampler",
    data_root=None,
    info_path=root + "nuscenes_dbinfos_train.pkl",
    rate=1.0,
    prepare=dict(filter_by_difficulty=[-1], filter_by_min_points={name: 5 for name in names}),  # noqa: C420
    classes=names,
    sample_groups=dict(
        car=2, truck=3, construction_vehicle=7, bus=4, trailer=6, barrier=2, motorcycle=6, bicycle=6,
        pedestrian=2, traffic_cone=2,
    ),
    points_loader=dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4]),
)  # fmt: skip
train_pipeline = [
    *load,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(type="UnifiedObjectSample", sample_2d=True, mixup_rate=0.5, db_sampler=sampler),
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
    dict(type="PointsRangeFilter", point_cloud_range=pc_range),
    dict(type="ObjectRangeFilter", point_cloud_range=pc_range),
    dict(type="ObjectNameFilter", classes=names),
    dict(type="PointShuffle"),
    dict(type="ResizeCropFlipImage", data_aug_conf=cut, training=True),
    dict(type="PhotoMetricDistortionMultiViewImage"),
    dict(type="NormalizeMultiviewImage", **normalise),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D", class_names=names),
    dict(
        type="Collect3D",
        keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"],
        meta_keys=("filename", "lidar2img", "pad_shape"),
    ),
]
test_pipeline = [
    *load,
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1333, 800),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(
                type="GlobalRotScaleTrans",
                rot_range=[0, 0],
                scale_ratio_range=[1.0, 1.0],
                translation_std=[0, 0, 0],
            ),
            dict(type="RandomFlip3D"),
            dict(type="ResizeCropFlipImage", data_aug_conf=cut, training=False),
            dict(type="NormalizeMultiviewImage", **normalise),
            dict(type="PadMultiViewImage", size_divisor=32),
            dict(type="DefaultFormatBundle3D", class_names=names, with_label=False),
            dict(type="Collect3D", keys=["points", "img"]),
        ],
    ),
]
frames = dict(
    type="CustomNuScenesDataset",
    data_root=root,
    load_interval=1,
    classes=names,
    modality=dict(use_lidar=True, use_camera=True, use_radar=False, use_map=False, use_external=False),
    box_type_3d="LiDAR",
)
infos = dict(train=root + "/nuscenes_infos_train.pkl", val=root + "/nuscenes_infos_val.pkl")
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=6,
    train=dict(
        type="CBGSDataset",
        dataset=dict(ann_file=infos["train"], pipeline=train_pipeline, test_mode=False, **frames),
    ),
    val=dict(ann_file=infos["val"], pipeline=test_pipeline, test_mode=True, **frames),
    test=dict(ann_file=infos["val"], pipeline=test_pipeline, test_mode=True, **frames),
)

attention = dict(embed_dims=256, num_heads=8, dropout=0.1)
bn = dict(type="BN", eps=0.001, momentum=0.01)
model = dict(
    type="CmtDetector",
    use_grid_mask=True,
    img_backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        with_cp=True,
        style="pytorch",
    ),
    img_neck=dict(type="CPFPN", in_channels=[1024, 2048], out_channels=256, num_outs=2),
    pts_voxel_layer=dict(
        num_point_features=5,
        max_num_points=10,
        voxel_size=voxel_size,
        max_voxels=(120000, 160000),
        point_cloud_range=pc_range,
    ),
    pts_voxel_encoder=dict(type="HardSimpleVFE", num_features=5),
    pts_middle_encoder=dict(
        type="SparseEncoder",
        in_channels=5,
        sparse_shape=[41, 1024, 1024],
        output_channels=128,
        order=("conv", "norm", "act"),
        encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0)),
        block_type="basicblock",
    ),
    pts_backbone=dict(
        type="SECOND",
        in_channels=256,
        out_channels=[128, 256],
        layer_nums=[5, 5],
        layer_strides=[1, 2],
        norm_cfg=bn,
        conv_cfg=dict(type="Conv2d", bias=False),
    ),
    pts_neck=dict(
        type="SECONDFPN",
        in_channels=[128, 256],
        out_channels=[256, 256],
        upsample_strides=[1, 2],
        norm_cfg=bn,
        upsample_cfg=dict(type="deconv", bias=False),
        use_conv_for_no_stride=True,
    ),
    pts_bbox_head=dict(
        type="CmtHead",
        in_channels=512,
        hidden_dim=256,
        downsample_scale=8,
        common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        tasks=[dict(num_class=10, class_names=names)],
        bbox_coder=dict(
            type="MultiTaskBBoxCoder",
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            pc_range=pc_range,
            max_num=300,
            voxel_size=voxel_size,
            num_classes=10,
        ),
        separate_head=dict(type="SeparateTaskHead", init_bias=-2.19, final_kernel=1),
        transformer=dict(
            type="CmtTransformer",
            decoder=dict(
                type="PETRTransformerDecoder",
                return_intermediate=True,
                num_layers=6,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    with_cp=False,
                    attn_cfgs=[
                        dict(type="MultiheadAttention", **attention),
                        dict(type="PETRMultiheadFlashAttention", **attention),
                    ],
                    ffn_cfgs=dict(
                        type="FFN",
                        embed_dims=256,
                        feedforward_channels=1024,
                        num_fcs=2,
                        ffn_drop=0.0,
                        act_cfg=dict(type="ReLU", inplace=True),
                    ),
                    feedforward_channels=1024,
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        loss_cls=dict(
            type="FocalLoss", use_sigmoid=True, gamma=2, alpha=0.25, reduction="mean", loss_weight=2.0
        ),
        loss_bbox=dict(type="L1Loss", reduction="mean", loss_weight=0.25),
        loss_heatmap=dict(type="GaussianFocalLoss", reduction="mean", loss_weight=1.0),
    ),
    train_cfg=dict(
        pts=dict(
            dataset="nuScenes",
            assigner=dict(
                type="HungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                iou_cost=dict(type="IoUCost", weight=0.0),
                pc_range=pc_range,
                code_weights=weights,
            ),
            pos_weight=-1,
            gaussian_overlap=0.1,
            min_radius=2,
            grid_size=grid,
            voxel_size=voxel_size,
            out_size_factor=8,
            code_weights=weights,
            point_cloud_range=pc_range,
        )
    ),
    test_cfg=dict(
        pts=dict(dataset="nuScenes", grid_size=grid, out_size_factor=8, nms_type=None, max_num=200)
    ),
)

optimizer = dict(
    type="AdamW",
    lr=0.00014,
    paramwise_cfg=dict(
        custom_keys={
            "img_backbone": dict(lr_mult=0.01, decay_mult=5),
            "img_neck": dict(lr_mult=0.1),
        }
    ),
    weight_decay=0.01,
)
optimizer_config = dict(
    type="CustomFp16OptimizerHook",
    loss_scale="dynamic",
    grad_clip=dict(max_norm=35, norm_type=2),
    custom_fp16=dict(pts_voxel_encoder=False, pts_middle_encoder=False, pts_bbox_head=False),
)
lr_config = dict(policy="cyclic", target_ratio=(6, 0.0001), cyclic_times=1, step_ratio_up=0.4)
momentum_config = dict(
    policy="cyclic", target_ratio=(0.8947368421052632, 1), cyclic_times=1, step_ratio_up=0.4
)
runner = dict(type="EpochBasedRunner", max_epochs=20)
evaluation = dict(interval=20)
checkpoint_config = dict(interval=1)
custom_hooks = [dict(type="EMAHook", momentum=0.0002), dict(type="NumClassCheckHook")]
log_config = dict(interval=50, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
dist_params = dict(backend="nccl")
find_unused_parameters = True
log_level = "INFO"
work_dir = None
load_from = "ckpts/nuim_r50.pth"
resume_from = None
workflow = [("train", 1)]
gpu_ids = range(0, 8)
