"""Another backbone width, the neck forgotten."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(
    img_backbone=dict(base_channels=32),
    img_neck=dict(in_channels=[32, 64]),  # finding: shapes-disagree
)
