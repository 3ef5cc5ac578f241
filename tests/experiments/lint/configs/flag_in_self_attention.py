"""Self-attention has nothing to bias; the flag on a line of its own."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(transformerlayers=dict(
    attn_cfgs=[
        dict(
            type="MultiheadAttention",
            embed_dims=96,
            num_heads=2,
            use_flashbias=True,  # finding: dead-flashbias
        ),
        {"type": "PETRMultiheadFlashAttention", "embed_dims": 96, "num_heads": 2, "bias": "global", "use_flashbias": True},
    ],
)))))
