"""AQR as wide as in the published model, in a head of 96."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(aqr_config=dict(embed_dims=256)))  # finding: shapes-disagree
