"""CMT-AQR at a size that trains on two CPU cores: six 96 x 240 images, pillars, three decoder layers.

The syntax is that of CMT's configs. Names with a leading underscore are variables of this file; nothing reads
them afterwards. Windows cover about the same share of each map as the published ones.
"""
# ruff: noqa: C408  configs of mmengine are written with dict()

default_scope = "mmdet3d"

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
_dims = 96
_heads = 2  # two wide heads: on a CPU the softmax, heads x queries x keys, costs as much as the products
_code_weights = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
_sparse_bn = dict(eps=1e-3, momentum=0.01)  # of mmdet3d's LiDAR modules

model = dict(
    type="CmtDetector",
    image_size=(96, 240),
    data_preprocessor=dict(
        type="Det3DDataPreprocessor",
        mean=[103.530, 116.280, 123.675],  # BGR, as OpenCV reads; CMT
        std=[57.375, 57.120, 58.395],
        bgr_to_rgb=False,
        pad_size_divisor=16,
    ),
    img_backbone=dict(
        type="mmdet.ResNet",
        depth=18,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),  # strides 8 and 16
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,  # trained from scratch, unlike CMT's ImageNet backbones
        style="pytorch",
    ),
    img_neck=dict(type="CPFPN", in_channels=[32, 64], out_channels=_dims),
    pts_branch=dict(
        type="PillarBranch",
        point_cloud_range=_range,
        grid_shape=(128, 128),  # pillars of 0.84 m
        max_points=16,
        voxel_encoder=dict(
            type="PillarFeatureNet",
            in_channels=5,
            feat_channels=[32],
            with_distance=False,
            legacy=False,  # the old behaviour overwrites x, y, z by their offsets
            norm_cfg=dict(type="BN1d", **_sparse_bn),
        ),
        middle_encoder=dict(type="PointPillarsScatter", in_channels=32),
        backbone=dict(
            type="SECOND",
            in_channels=32,
            out_channels=[32, 64],
            layer_nums=[2, 3],
            layer_strides=[2, 2],
            norm_cfg=dict(type="BN", **_sparse_bn),
        ),
        neck=dict(
            type="SECONDFPN",
            in_channels=[32, 64],
            out_channels=[64, 64],
            upsample_strides=[0.5, 1],  # tokens of 3.4 m, 32 x 32
            use_conv_for_no_stride=True,
            norm_cfg=dict(type="BN", **_sparse_bn),
        ),
    ),
    pts_bbox_head=dict(
        type="CmtAqrHead",
        in_channels=128,
        hidden_dim=_dims,
        num_query=150,
        depth_num=32,
        tasks=[dict(num_class=len(_classes), class_names=_classes)],
        common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        separate_head=dict(type="SeparateTaskHead", head_conv=64, init_bias=-2.19, final_kernel=1),
        denoising=dict(scalar=2, noise_scale=1.0, noise_trans=0.0, dn_weight=1.0, split=0.75),
        transformer=dict(
            type="CmtTransformer",
            decoder=dict(
                type="PETRTransformerDecoder",
                return_intermediate=True,
                num_layers=3,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    with_cp=False,
                    attn_cfgs=[
                        dict(
                            type="MultiheadAttention",
                            embed_dims=_dims,
                            num_heads=_heads,
                            dropout=0.1,
                            impl="sdpa_math",
                        ),
                        dict(
                            type="PETRMultiheadFlashAttention",
                            embed_dims=_dims,
                            num_heads=_heads,
                            dropout=0.1,
                            bias="window",
                            impl="sdpa_math",
                        ),
                    ],
                    ffn_cfgs=dict(
                        type="FFN", embed_dims=_dims, feedforward_channels=192, num_fcs=2, ffn_drop=0.0
                    ),
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        aqr_config=dict(
            type="AqrWeightGenerator",
            embed_dims=_dims,
            window_lidar=3,
            window_camera=5,
            encoder_config=dict(
                num_layers=1,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    attn_cfgs=[
                        dict(
                            type="PETRMultiheadFlashAttention",
                            embed_dims=_dims,
                            num_heads=_heads,
                            dropout=0.1,
                            bias="local",
                            impl="sdpa_math",
                        )
                    ],
                    ffn_cfgs=dict(
                        type="FFN", embed_dims=_dims, feedforward_channels=192, num_fcs=2, ffn_drop=0.1
                    ),
                    operation_order=("cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        bias_config=dict(
            type="AttentionBiasGenerator",
            window_lidar=3,
            window_camera=5,
            sigma=1.0,
            scale=2.5,
            scale_range=(0.5, 5.0),
            max_bias=5.0,
        ),
        bbox_coder=dict(
            type="MultiTaskBBoxCoder",
            pc_range=_range,
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=150,
            num_classes=len(_classes),
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type="L1Loss", loss_weight=0.25),
        train_cfg=dict(
            code_weights=_code_weights,
            assigner=dict(
                type="HungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                code_weights=_code_weights,
            ),
        ),
    ),
)

# Fine-tuning of a trained detector, with AQR's multipliers. Both branches are frozen (multiplier 0: no
# gradient, batch norm keeps its statistics), the necks too (AQR: 0.05), which saves time at every step. To
# train everything, override optim_wrapper.paramwise_cfg.custom_keys with {}.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            "img_backbone": dict(lr_mult=0.0),
            "img_neck": dict(lr_mult=0.0),
            "pts_branch": dict(lr_mult=0.0),
            "pts_bbox_head.transformer": dict(lr_mult=0.5),
            "bev_embedding": dict(lr_mult=0.5),
            "rv_embedding": dict(lr_mult=0.5),
            "reference_points": dict(lr_mult=0.3),
            "task_heads": dict(lr_mult=0.8),
            "pts_bbox_head.aqr": dict(lr_mult=1.0),
            "bias_scale": dict(lr_mult=2.0),
        }
    ),
    clip_grad=dict(max_norm=35.0, norm_type=2),
)
