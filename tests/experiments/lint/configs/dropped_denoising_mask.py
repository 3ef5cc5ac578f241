"""Denoising queries need a mask in self-attention, which flash-attn cannot take."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

_attention = dict(embed_dims=96, num_heads=2, dropout=0.1)
model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(transformerlayers=dict(
    attn_cfgs=[
        dict(type="MultiheadAttention", impl="flash", **_attention),  # finding: dropped-bias
        dict(type="PETRMultiheadFlashAttention", bias="window", impl="rects", **_attention),
    ],
)))))
