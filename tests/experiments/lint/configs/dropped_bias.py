"""flash-attn takes no additive bias: the windows would be lost."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

_attention = dict(embed_dims=96, num_heads=2, dropout=0.1)
model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(transformerlayers=dict(
    attn_cfgs=[
        dict(type="MultiheadAttention", **_attention),
        dict(
            type="PETRMultiheadFlashAttention",
            bias="window",
            impl="flash",  # finding: dropped-bias
            **_attention,
        ),
    ],
)))))
