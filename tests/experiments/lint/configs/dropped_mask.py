"""FlashBias cannot express the local mask of AQR: minus infinity is no sum of products."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(aqr_config=dict(encoder_config=dict(transformerlayers=dict(
    attn_cfgs=[
        dict(
            type="PETRMultiheadFlashAttention",
            embed_dims=96,
            num_heads=2,
            impl="lowrank",  # finding: dropped-bias
        )
    ],
)))))
