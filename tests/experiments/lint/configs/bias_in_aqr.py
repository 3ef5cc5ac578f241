"""The weight generator comes before the bias: it can have a mask, or nothing."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(aqr_config=dict(encoder_config=dict(transformerlayers=dict(
    attn_cfgs=[dict(
        type="PETRMultiheadFlashAttention", embed_dims=96, num_heads=2,
        bias="window",  # finding: misplaced-bias
    )],
)))))
