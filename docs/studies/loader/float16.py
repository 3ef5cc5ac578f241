"""What points stored as float16 cost: error by distance, bytes, and NDS of the shipped checkpoint.

Rounds every LiDAR file of a copy of the dataset to float16 and back, which is what shards with
``--points float16`` give, and scores both. Example:

    python docs/studies/loader/float16.py --data data/mini --out runs/float16
"""

import argparse
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.cli import main as biaswise
from pipeline.metrics.rows import read_rows, select

CHECKPOINT = "experiments/checkpoints/cmt_aqr_pillar_mini.safetensors"
CONDITIONS = "clean,no_cameras"
EDGES_M = (0, 8, 16, 32, 64, 128)


def main() -> None:
    """Round, compare, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/mini"))
    parser.add_argument("--out", type=Path, default=Path("runs/float16"))
    asked = parser.parse_args()
    rounded = asked.out / "data"
    if not rounded.exists():
        shutil.copytree(asked.data, rounded)
    found = {"max_error_m": errors(asked.data, rounded)}
    for name, data in (("float32", asked.data), ("float16", rounded)):
        words = ["--data", str(data), "--conditions", CONDITIONS, "--runs-dir", str(asked.out / name)]
        if biaswise(["evaluate", CHECKPOINT, *words]):
            raise SystemExit(1)
        (rows,) = (asked.out / name).glob("evaluate/trials/*/rows.jsonl")
        found[name] = {
            f"{metric}/{row.condition}": row.value
            for metric in ("NDS", "mAP")
            for row in select(read_rows(rows), metric=metric)
        }
    (asked.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def errors(data: Path, rounded: Path) -> dict[str, float]:
    """Round the points of ``rounded``; return the largest distance that a point moved, by its range."""
    worst = dict.fromkeys(pairwise(EDGES_M), 0.0)
    for path in sorted((data / "samples/LIDAR_TOP").iterdir()):
        points = np.fromfile(path, "<f4").reshape(-1, 5)
        made = points.astype("<f2").astype("<f4")
        made.tofile(rounded / "samples/LIDAR_TOP" / path.name)
        moved = np.linalg.norm(made[:, :3] - points[:, :3], axis=1)
        far = np.linalg.norm(points[:, :3], axis=1)
        for (low, high), largest in worst.items():
            here = moved[(far >= low) & (far < high)]
            worst[low, high] = max(largest, float(here.max()) if len(here) else 0.0)
    return {f"{low} to {high} m": value for (low, high), value in worst.items()}


if __name__ == "__main__":
    main()
