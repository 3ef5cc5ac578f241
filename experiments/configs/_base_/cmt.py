"""CMT's fusion detector, less what the two published sizes differ in: image backbone, voxels, image size.

Keys and values of junjie18/CMT, projects/configs/fusion; keys that its code never reads are left out. Names
with a leading underscore are variables of these files; nothing reads them afterwards.
"""
# ruff: noqa: C408  configs of mmengine are written with dict(), and mmengine gives _base_ its meaning

_base_ = ["./nuscenes_cbgs.py"]

_code_weights = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
_sparse_bn = dict(eps=1e-3, momentum=0.01)  # of mmdet3d's LiDAR modules

model = dict(
    type="CmtDetector",
    use_grid_mask=True,
    data_preprocessor=dict(
        type="Det3DDataPreprocessor",
        mean=[103.530, 116.280, 123.675],  # BGR, as OpenCV reads
        std=[57.375, 57.120, 58.395],
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    img_neck=dict(type="CPFPN", out_channels=256, num_outs=2),
    pts_voxel_layer=dict(
        num_point_features=5,
        max_num_points=10,
        max_voxels=(120000, 160000),  # in training, in evaluation; per sample
        point_cloud_range=_base_._range,
    ),
    pts_voxel_encoder=dict(type="HardSimpleVFE", num_features=5),
    pts_middle_encoder=dict(
        type="SparseEncoder",
        in_channels=5,
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
        norm_cfg=dict(type="BN", **_sparse_bn),
        conv_cfg=dict(type="Conv2d", bias=False),
    ),
    pts_neck=dict(
        type="SECONDFPN",
        in_channels=[128, 256],
        out_channels=[256, 256],
        upsample_strides=[1, 2],
        norm_cfg=dict(type="BN", **_sparse_bn),
        upsample_cfg=dict(type="deconv", bias=False),
        use_conv_for_no_stride=True,
    ),
    pts_bbox_head=dict(
        type="CmtHead",
        in_channels=512,
        hidden_dim=256,
        num_query=900,
        depth_num=64,
        tasks=[dict(num_class=len(_base_._classes), class_names=_base_._classes)],
        common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        separate_head=dict(type="SeparateTaskHead", head_conv=64, init_bias=-2.19, final_kernel=1),
        denoising=dict(scalar=10, noise_scale=1.0, noise_trans=0.0, dn_weight=1.0, split=0.75),
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
                        dict(
                            type="MultiheadAttention",
                            embed_dims=256,
                            num_heads=8,
                            dropout=0.1,
                            impl="sdpa_efficient",  # takes the mask of the denoising queries
                        ),
                        dict(
                            type="PETRMultiheadFlashAttention",
                            embed_dims=256,
                            num_heads=8,
                            dropout=0.1,
                            impl="rects",
                        ),
                    ],
                    ffn_cfgs=dict(
                        type="FFN", embed_dims=256, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0
                    ),
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        bbox_coder=dict(
            type="MultiTaskBBoxCoder",
            pc_range=_base_._range,
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=300,
            num_classes=len(_base_._classes),
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type="L1Loss", loss_weight=0.25),
    ),
    train_cfg=dict(
        pts=dict(
            code_weights=_code_weights,
            assigner=dict(
                type="HungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                iou_cost=dict(type="IoUCost", weight=0.0),
                code_weights=_code_weights,
            ),
        )
    ),
)
