"""The LiDAR neck gives 128 channels."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(in_channels=512))  # finding: shapes-disagree
