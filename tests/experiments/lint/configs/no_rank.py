"""FlashBias on a window, in one layer of three, without a rank."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

_cross = dict(type="PETRMultiheadFlashAttention", embed_dims=96, num_heads=2, bias="window")
_layer = dict(
    type="PETRTransformerDecoderLayer",
    ffn_cfgs=dict(type="FFN", embed_dims=96, feedforward_channels=192),
    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
)
_self = dict(type="MultiheadAttention", embed_dims=96, num_heads=2)
model = dict(
    pts_bbox_head=dict(
        transformer=dict(
            decoder=dict(
                transformerlayers=[
                    dict(**_layer, attn_cfgs=[_self, dict(**_cross, impl="rects")]),
                    dict(**_layer, attn_cfgs=[_self, dict(**_cross, use_flashbias=True)]),  # finding: no-rank
                    dict(**_layer, attn_cfgs=[_self, dict(**_cross, use_flashbias=True, rank=8)]),
                ]
            )
        )
    )
)
