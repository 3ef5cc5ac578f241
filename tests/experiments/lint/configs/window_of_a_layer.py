"""Windows that layers choose for themselves: one too large for the camera maps of 12 x 30, one without a bias."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

_attn = dict(embed_dims=96, num_heads=2)
_own = dict(**_attn, type="MultiheadAttention")
_cross = dict(**_attn, type="PETRMultiheadFlashAttention", impl="rects")
_layer = dict(
    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    ffn_cfgs=dict(embed_dims=96, feedforward_channels=192),
)
model = dict(
    pts_bbox_head=dict(
        transformer=dict(
            decoder=dict(
                transformerlayers=[
                    dict(**_layer, attn_cfgs=[_own, dict(**_cross, bias="window", window=12)]),
                    dict(
                        **_layer,
                        attn_cfgs=[
                            _own,
                            dict(
                                **_cross,
                                bias="window",
                                window=13,  # finding: window-too-large
                            ),
                        ],
                    ),
                    dict(
                        **_layer,
                        attn_cfgs=[
                            _own,
                            dict(
                                **_cross,
                                bias="none",
                                window=3,  # finding: contradiction
                            ),
                        ],
                    ),
                ]
            )
        )
    )
)
