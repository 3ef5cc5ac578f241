"""``biaswise plan --aqr``: a config of CMT, of today or migrated, becomes one of CMT-AQR."""

from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.lint.aqr import SHIPPED, add_aqr
from experiments.lint.check import lint
from experiments.lint.finding import LintError
from experiments.lint.migration.report import write_today
from pipeline.detector.build import load_config
from pipeline.detector.inspection.sites import plain
from pipeline.storage.paths import ROOT

PREVIOUS = Path(__file__).parent / "previous"
R50, VOV = list(SHIPPED.values())[:2]


def with_aqr(config: Path, *words: str) -> Path:
    """Write a config with AQR beside another, and check that lint finds nothing in it."""
    out = config.with_name(f"{config.stem}_with_aqr.py")
    assert main(["plan", str(config), "--aqr", "--out", str(out), *words]) == 0
    assert lint(out).wrong == []
    return out


def same(node: Any) -> Any:
    """Return a config's values with lists for tuples, as JSON has them."""
    if isinstance(node, dict):
        return {key: same(value) for key, value in node.items()}
    return [same(value) for value in node] if isinstance(node, list | tuple) else node


@pytest.mark.parametrize("shipped", [R50, VOV])
def test_it_makes_of_cmt_what_the_shipped_config_of_its_size_is(shipped: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(f'_base_ = ["{ROOT / shipped.replace("cmt_aqr", "cmt")}"]\n')
    made, wanted = (same(plain(load_config(path).to_dict())) for path in (with_aqr(config), shipped))
    assert made["optim_wrapper"]["paramwise_cfg"] == wanted["optim_wrapper"]["paramwise_cfg"]
    made, wanted = made["model"], wanted["model"]
    assert made["pts_bbox_head"].pop("type") == "CmtHead", "another name of CmtAqrHead"
    assert wanted["pts_bbox_head"].pop("type") == "CmtAqrHead"
    attention = made["pts_bbox_head"]["transformer"]["decoder"]["transformerlayers"]["attn_cfgs"]
    assert attention[0].pop("bias") == "none", "what the shipped config does not say"
    assert made == wanted


@pytest.mark.parametrize("old", ["fusion", "cameras", "lidar"])
def test_a_migrated_config_gets_aqr_and_keeps_its_schedule(old: str, tmp_path: Path) -> None:
    config = tmp_path / "new.py"
    write_today(PREVIOUS / f"{old}.py", config)
    out = with_aqr(config, "--choice", "decoder.0.cross=window:3/rects")
    before, after = (plain(load_config(path).to_dict()) for path in (config, out))
    for section in ("param_scheduler", "train_cfg", "train_dataloader"):
        assert after[section] == before[section]
    assert after["optim_wrapper"]["optimizer"] == before["optim_wrapper"]["optimizer"]
    receives = {line.site: line.receives for line in lint(out).sites}
    assert receives["decoder.0.cross"] == "bias: window 3 (BEV), 3 (camera)"
    assert receives["decoder.1.cross"].startswith("bias: window")


def test_a_config_that_has_aqr_is_left_alone() -> None:
    with pytest.raises(LintError, match="has aqr_config or bias_config already; leave --aqr out"):
        add_aqr(ROOT / R50)
