"""CMT-AQR with ResNet-50: weights of LiDAR and cameras per query bias the decoder's cross-attention.

For fine-tuning cmt_voxel0100_r50_800x320_cbgs, whose checkpoint it starts from.
"""
# ruff: noqa: C408  configs of mmengine are written with dict(), and mmengine gives _base_ its meaning

_base_ = ["./cmt_voxel0100_r50_800x320_cbgs.py"]

_lr = 1.4e-4

model = dict(
    pts_bbox_head=dict(
        type="CmtAqrHead",
        transformer=dict(
            decoder=dict(
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(
                            type="MultiheadAttention",
                            embed_dims=256,
                            num_heads=8,
                            dropout=0.1,
                            impl="sdpa_efficient",
                        ),
                        dict(  # all layers alike; `transformerlayers` may be a list with one entry per layer
                            type="PETRMultiheadFlashAttention",
                            embed_dims=256,
                            num_heads=8,
                            dropout=0.1,
                            bias="window",
                            impl="rects",
                        ),
                    ],
                ),
            ),
        ),
        aqr_config=dict(
            type="AqrWeightGenerator",
            embed_dims=256,
            window_lidar=5,
            window_camera=8,
            encoder_config=dict(
                num_layers=1,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    attn_cfgs=[
                        # Takes the local mask and no bias: `use_flashbias` has no place here.
                        dict(
                            type="PETRMultiheadFlashAttention",
                            embed_dims=256,
                            num_heads=4,
                            dropout=0.1,
                            bias="local",
                            impl="rects",
                        )
                    ],
                    ffn_cfgs=dict(
                        type="FFN", embed_dims=256, feedforward_channels=1024, num_fcs=2, ffn_drop=0.1
                    ),
                    operation_order=("cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        bias_config=dict(
            type="AttentionBiasGenerator",
            window_lidar=8,
            window_camera=8,
            use_local_bias=True,
            sigma=1.0,  # of the bias kind `gaussian`
            scale=2.5,
            scale_range=(0.5, 5.0),
            max_bias=5.0,
        ),
    ),
)

train_dataloader = dict(batch_size=1)

# Frozen: both backbones and what makes voxels into a map (the voxel encoder has no parameter).
optim_wrapper = dict(
    optimizer=dict(lr=_lr),
    paramwise_cfg=dict(
        custom_keys=dict(
            _delete_=True,
            img_backbone=dict(lr_mult=0.0),
            pts_backbone=dict(lr_mult=0.0),
            pts_middle_encoder=dict(lr_mult=0.0),
            img_neck=dict(lr_mult=0.05),
            pts_neck=dict(lr_mult=0.05),
            transformer=dict(lr_mult=0.5),
            bev_embedding=dict(lr_mult=0.5),
            rv_embedding=dict(lr_mult=0.5),
            reference_points=dict(lr_mult=0.3),
            task_heads=dict(lr_mult=0.8),
            aqr=dict(lr_mult=1.0),
            bias_scale=dict(lr_mult=2.0),
        )
    ),
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=6, **_base_._up),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-4, **_base_._down),
    *_base_._momentum,
]
