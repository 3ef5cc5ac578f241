"""Keys with a slip, one in the model, one among the sections, one among the multipliers."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

optim_wraper = dict(optimizer=dict(lr=1e-3))  # finding: unused-key
model = dict(
    pts_bbox_head=dict(
        bias_config=dict(
            sgima=2.0,  # finding: unused-key
        ),
        denoising=dict(scaler=4),  # finding: unused-key
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "bias_scales": dict(lr_mult=2.0),  # finding: unused-key
        }
    )
)
