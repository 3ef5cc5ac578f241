"""The smallest model that the mini's config makes: for what tries the machinery and not the model."""

import json

SMALLEST = tuple(
    (key, json.dumps(value))
    for key, value in {
        "model.image_size": [48, 112],
        "model.pts_branch.grid_shape": [64, 64],
        "model.pts_bbox_head.num_query": 24,
        "model.pts_bbox_head.depth_num": 8,
        "model.pts_bbox_head.denoising.scalar": 1,
    }.items()
)
"""Overrides of the config: a key and the JSON text of its value."""
