"""The window of the vov config on the mini's camera maps of 12 x 30 cells."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(bias_config=dict(window_camera=15)))  # finding: window-too-large
