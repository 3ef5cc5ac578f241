"""A bias that nothing makes."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(
    pts_bbox_head=dict(
        aqr_config=None,
        bias_config=None,
        transformer=dict(decoder=dict(transformerlayers=dict(attn_cfgs=[
            dict(type="MultiheadAttention", embed_dims=96, num_heads=2),
            dict(type="PETRMultiheadFlashAttention", embed_dims=96, num_heads=2, bias="window"),  # finding: misplaced-bias
        ]))),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True)))
