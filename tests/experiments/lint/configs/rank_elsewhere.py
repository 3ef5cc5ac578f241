"""A rank for an implementation that is exact."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

_attention = dict(embed_dims=96, num_heads=2)
model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(transformerlayers=dict(attn_cfgs=[
    dict(type="MultiheadAttention", **_attention),
    dict(type="PETRMultiheadFlashAttention", bias="window", impl="rects", rank=8, **_attention),  # finding: contradiction
])))))
