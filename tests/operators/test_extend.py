"""docs/extend.md: a new bias kind is two entries. They are put into a copy of the project and used there."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from experiments.recipes.decision_rule import DecisionRule

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
USE = """
import torch
from operators import TokenGrid, attention, Unsupported
from operators.spec import BIAS_KINDS, WINDOWED_KINDS
from operators.testing.cases import Sizes, check_case, gradients_served, make_case
from operators.window_bias import ConeBias
from pipeline.config.plan import Plan
from pipeline.detector.build import build_model

assert "cone" in BIAS_KINDS and "cone" in WINDOWED_KINDS
case = make_case("cone", Sizes(2, 2, 7, 8, bev=(5, 4), cameras=(2, 3, 3)), torch.float32)
for impl in ("sdpa_math", "reference"):
    assert gradients_served(impl, case) == "all"
    check_case(case, impl)
assert gradients_served("gathered", case) is None
bias = case.bias(case.leaves["weight"])
assert type(bias) is ConeBias
dense = bias.dense()
b, h, q = 0, 0, 1
for cell in range(20):  # of the BEV map
    row, col = divmod(cell, 4)
    first_row, last_row, first_col, last_col = bias.windows[b, q, 0].tolist()
    inside = first_row <= row <= last_row and first_col <= col <= last_col
    down, right = (x - y for x, y in zip((row, col), bias.centers[b, q, 0].tolist()))
    falls = max(0.0, 1 - (down * down + right * right) ** 0.5 / bias.sigma)
    value = bias.weight[b, h, q, 0].item() * falls if inside else 0.0
    value = max(-bias.limit, min(bias.limit, value))
    assert abs(dense[b, h, q, cell].item() - value) < 1e-5, (cell, value)
plan = Plan.of({"aqr.*": "local/sdpa_math", "decoder.*.self": "none/sdpa_math",
                "decoder.*.cross": "cone:3/sdpa_math"})
small = [("model.pts_bbox_head.num_query", "20"), ("model.pts_bbox_head.bbox_coder.max_num", "20")]
model = build_model("experiments/configs/cmt_aqr_pillar_mini.py", small, plan)
assert str(model.plan["decoder.1.cross"]) == "cone:3/sdpa_math"
by_config = build_model("experiments/configs/cmt_aqr_pillar_mini.py", [
    *small, ("model.pts_bbox_head.bias_config.fall_off", '"cone"')])
assert by_config.pts_bbox_head.bias_generator.default_kind == "cone"
print("served")
"""


def test_a_kind_is_two_entries(tmp_path: Path) -> None:
    line, cls = (re.sub(r"^\n", "", block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)[:2])
    for folder in ("operators", "pipeline", "experiments/configs", "experiments/checkpoints"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    spec, windows = tmp_path / "operators/spec.py", tmp_path / "operators/window_bias.py"
    before = spec.read_text()
    spec.write_text(before.replace('    "dense": Kind(', f'{line}    "dense": Kind('))
    assert spec.read_text() != before
    windows.write_text(f"{windows.read_text()}\n\n{cls}")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("served"), done.stderr[-2000:]


def test_the_page_names_every_field_of_a_rule() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert sorted(named) == sorted(field.name for field in fields(DecisionRule))
