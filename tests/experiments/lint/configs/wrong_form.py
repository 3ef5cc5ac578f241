"""The mission's wrong form: the flag at the AQR weight generator, which gets no bias."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(
    pts_bbox_head=dict(
        # Comments, odd spacing and quotes stay as they are.
        aqr_config = dict(encoder_config=dict(transformerlayers=dict(
            attn_cfgs=[dict(type='PETRMultiheadFlashAttention', embed_dims=96, num_heads=2, use_flashbias=True)],  # finding: dead-flashbias
            operation_order=('cross_attn', 'norm', 'ffn', 'norm')))),
    ),
)
