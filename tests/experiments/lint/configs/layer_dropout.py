"""Dropout given to a layer, where nobody reads it."""

_base_ = ["../../../../experiments/configs/cmt_aqr_pillar_mini.py"]

model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(transformerlayers=dict(
    dropout=0.1,  # finding: dropout
)))))
