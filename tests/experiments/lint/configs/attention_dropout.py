"""mmcv's names for dropout: they mean attention weights, which are never dropped here."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(aqr_config=dict(encoder_config=dict(transformerlayers=dict(
    attn_cfgs=[
        dict(
            type="PETRMultiheadFlashAttention",
            embed_dims=96,
            num_heads=2,
            attn_drop=0.1,  # finding: dropout
            bias="local",
        )
    ],
)))))
