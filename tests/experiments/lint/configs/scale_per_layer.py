"""Six scales, as for CMT's six layers, in a decoder of three."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(bias_config=dict(num_scales=6)))  # finding: shapes-disagree
