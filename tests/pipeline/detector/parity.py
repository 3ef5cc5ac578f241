"""Numbers of the published implementation, and the weights that made them (README beside the data)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "parity"  # beside the repository
HEAD_NAMES = ("center", "height", "dim", "rot", "vel")
CODE_WEIGHTS = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]


class Parity:
    """Access to the golden files."""

    def __init__(self):
        if not FOLDER.is_dir():
            pytest.skip(f"parity data of the published implementation is not at {FOLDER}")

    def load(self, name):
        return load_file(FOLDER / f"golden_a_{name}.safetensors")

    def keys(self, detector):
        """Key -> shape of an official detector."""
        lines = [
            line.split("\t") for line in (FOLDER / f"state_dict_{detector}.txt").read_text().splitlines()
        ]
        return {
            fields[0]: () if fields[1] == "scalar" else tuple(int(n) for n in fields[1].split("x"))
            for fields in lines
            if len(fields) > 1 and not fields[0].startswith("#")
        }

    def hashes(self):
        return json.loads((FOLDER / "weights_check.json").read_text())

    def fill(self, module, prefix):
        """Load every parameter and buffer of a module with the weight that its key names."""
        state = {k: weight(prefix + k, tuple(v.shape)) for k, v in module.state_dict().items()}
        module.load_state_dict(state)
        return module


def weight(key, shape):
    """Weight of a tensor from its key: section 2 of the data's README."""
    r = np.random.RandomState(zlib.crc32(f"A/{key}".encode()))
    n = int(np.prod(shape))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("reference_points.weight"):
        value = -0.02 + 1.04 * r.random_sample(n)
    elif key.endswith("running_mean"):
        value = 0.1 * r.standard_normal(n)
    elif key.endswith("running_var"):
        value = np.abs(r.standard_normal(n)) + 0.5
    elif len(shape) == 1 and key.endswith(".weight"):
        value = 1 + 0.1 * r.standard_normal(n)
    elif len(shape) == 1:
        value = 0.05 * r.standard_normal(n)
    else:
        value = r.standard_normal(n) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(value.reshape(shape).astype(np.float16).astype(np.float32))


def head_config(**changes):
    """Published settings of the fusion head, with the data's 100 queries."""
    attention = {"embed_dims": 256, "num_heads": 8, "dropout": 0.1}
    layer = {
        "type": "PETRTransformerDecoderLayer",
        "attn_cfgs": [
            {"type": "MultiheadAttention", **attention},
            {"type": "PETRMultiheadFlashAttention", **attention},
        ],
        "ffn_cfgs": {"type": "FFN", "embed_dims": 256, "feedforward_channels": 1024, "ffn_drop": 0.0},
        "operation_order": ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    }
    coder = {
        "type": "MultiTaskBBoxCoder",
        "pc_range": RANGE,
        "post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        "max_num": 80,
        "num_classes": 10,
    }
    assigner = {
        "type": "HungarianAssigner3D",
        "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
        "reg_cost": {"type": "BBox3DL1Cost", "weight": 0.25},
        "iou_cost": {"type": "IoUCost", "weight": 0.0},
        "code_weights": CODE_WEIGHTS,
    }
    config = {
        "in_channels": 512,
        "hidden_dim": 256,
        "num_query": 100,
        "tasks": [{"num_class": 10, "class_names": ["car"]}],
        "transformer": {
            "type": "CmtTransformer",
            "decoder": {"type": "PETRTransformerDecoder", "num_layers": 6, "transformerlayers": layer},
        },
        "bbox_coder": coder,
        "loss_cls": {
            "type": "FocalLoss",
            "use_sigmoid": True,
            "gamma": 2.0,
            "alpha": 0.25,
            "loss_weight": 2.0,
        },
        "loss_bbox": {"type": "L1Loss", "loss_weight": 0.25},
        "common_heads": {name: (n, 2) for name, n in zip(HEAD_NAMES, (2, 1, 3, 2, 2), strict=True)},
        "separate_head": {"type": "SeparateTaskHead", "init_bias": -2.19, "final_kernel": 1},
        "train_cfg": {"assigner": assigner, "code_weights": CODE_WEIGHTS},
    }
    return {**config, **changes}


def gravity(boxes_bottom, centre):
    """Ground truth with z at the box centre."""
    return torch.cat([centre, boxes_bottom[:, 3:]], dim=1)


def ground_truth(data):
    """Boxes (z at the centre) and labels of both samples of a golden file."""
    boxes = [gravity(data[f"gt{b}_boxes_bottom"], data[f"gt{b}_centre_gravity"]) for b in (0, 1)]
    return boxes, [data[f"gt{b}_labels"] for b in (0, 1)]


def codes(data, prefix):
    """Published task-head outputs in channel order."""
    return torch.cat([data[f"{prefix}_{name}"] for name in HEAD_NAMES], dim=-1)


def relative_error(got, expected):
    """Largest difference over the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()
