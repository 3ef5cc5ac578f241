"""Lint on broken configs, which say in comments what has to be found where, and on shipped ones: nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.cli import main
from experiments.lint.check import LintReport, lint
from pipeline.config.provenance import SourcePlace
from pipeline.detector.build import build_model
from pipeline.detector.inspection.plan_config import plan_of
from pipeline.detector.inspection.survey import survey

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CONFIGS = ROOT / "experiments/configs"
BROKEN = sorted((HERE / "configs").glob("*.py"))
EXPECTED = re.compile(r"# finding: ([\w-]+)")
FULL_SIZE = sorted(CONFIGS.glob("cmt_*cbgs.py"))
MINI = CONFIGS / "cmt_aqr_pillar_mini.py"


def found(report: LintReport) -> list[tuple[str, Path, int]]:
    return [(f.rule, f.place.file, f.place.line) for f in report.wrong]


def write(path: Path, text: str, base: Path = MINI) -> Path:
    path.write_text(f'_base_ = ["{base}"]\n{text}')
    return path


def under(*keys: str, **values: str) -> str:
    """``model = dict(pts_bbox_head=dict(a=dict(b=dict(...))))``."""
    text = ", ".join(f"{key}={value}" for key, value in values.items())
    for key in reversed(("pts_bbox_head", *keys)):
        text = f"{key}=dict({text})"
    return f"model = dict({text})\n"


@pytest.mark.parametrize("config", BROKEN, ids=lambda path: path.stem)
def test_finds_what_is_broken_and_where(config: Path) -> None:
    expected = [
        (match.group(1), config, number)
        for number, line in enumerate(config.read_text().splitlines(), 1)
        if (match := EXPECTED.search(line))
    ]
    assert expected
    assert found(lint(config)) == expected


def test_there_are_more_than_ten_broken_configs_of_many_kinds() -> None:
    rules = {rule for path in BROKEN for rule in EXPECTED.findall(path.read_text())}
    assert len(BROKEN) > 11
    assert rules == {
        "dead-flashbias", "dropped-bias", "no-rank", "misplaced-bias", "contradiction", "shapes-disagree",
        "window-too-large", "dropout", "unused-key", "grid", "unknown-transform", "refused-value",
        "misplaced", "pipeline-model", "cannot-build",
    }  # fmt: skip


@pytest.mark.parametrize("config", [MINI, *FULL_SIZE], ids=lambda path: path.stem)
def test_shipped_configs_have_no_finding(config: Path) -> None:
    report = lint(config)
    assert found(report) == []
    grid = [note.place for note in report.notes if note.rule == "grid"]
    published = CONFIGS / "cmt_voxel0100_r50_800x320_cbgs.py"
    if "r50" in config.name:  # 1080 voxels on a grid of 1024, as published; written in the plain config
        (place,) = grid
        line = published.read_text().splitlines()[place.line - 1]
        assert place.file == published
        assert "sparse_shape=[41, 1024, 1024]" in line
    else:
        assert grid == []


def test_four_full_size_configs_ship() -> None:
    assert len(FULL_SIZE) == 4


def test_sites_say_what_they_receive_and_what_computes_it() -> None:
    report = lint(CONFIGS / "cmt_aqr_voxel0075_vov_1600x640_cbgs.py")
    lines = {line.site: (line.receives, line.impl, line.form) for line in report.sites}
    assert len(lines) == 13
    assert lines["aqr.0.cross"] == ("mask: window 5 (BEV), 15 (camera)", "rects", "RECTS")
    assert lines["decoder.5.cross"] == ("bias: window 15 (BEV), 15 (camera)", "rects", "RECTS")
    assert lines["decoder.5.self"] == ("mask of the denoising queries", "sdpa_efficient", "DENSE")


def test_a_number_in_a_base_that_a_child_made_wrong_is_shown_in_the_base(tmp_path: Path) -> None:
    config = write(tmp_path / "child.py", "model = dict(img_backbone=dict(base_channels=32))\n")
    ((rule, file, line),) = found(lint(config))
    assert (rule, file) == ("shapes-disagree", MINI)
    assert "in_channels=[32, 64]" in MINI.read_text().splitlines()[line - 1]


def test_a_value_that_is_computed_has_the_place_of_the_key_above(tmp_path: Path) -> None:
    text = "_cfg = dict(zip(['sgima'], [1.0]))\nmodel = dict(\n    pts_bbox_head=dict(bias_config=_cfg))\n"
    ((rule, _, line),) = found(lint(write(tmp_path / "computed.py", text)))
    assert (rule, line) == ("unused-key", 4)


def test_several_findings_come_at_once_though_the_model_does_not_build(tmp_path: Path) -> None:
    text = under("bias_config", sgima="1.0", scale="9.0", window_camera="15").replace(
        "model = dict(", "model = dict(image_sise=1, img_neck=dict(in_channels=[1, 2]), "
    )
    rules = [rule for rule, _, _ in found(lint(write(tmp_path / "many.py", text)))]
    assert sorted(rules) == [
        "cannot-build",
        "shapes-disagree",
        "unused-key",
        "unused-key",
        "window-too-large",
    ]


def test_a_variable_is_no_unused_key(tmp_path: Path) -> None:
    text = "aqr_config = dict(window_camera=3)\nleft_over = 1\n" + under(aqr_config="aqr_config")
    config = write(tmp_path / "variables.py", text)
    ((rule, _, line),) = found(lint(config))
    assert (rule, line) == ("unused-key", 3)
    config.write_text(config.read_text().replace("left_over = 1\n", ""))
    assert found(lint(config)) == []
    assert plan_of(config)["aqr.0.cross"].bias == "local"  # and it builds so


def test_memory_is_noted_where_a_dense_bias_fills_a_gpu(tmp_path: Path) -> None:
    base = CONFIGS / "cmt_aqr_voxel0075_vov_1600x640_cbgs.py"
    attn = "dict(embed_dims=256, num_heads=8, type={}, impl='sdpa_math'{})"
    attn_cfgs = f"[{attn.format(repr('MultiheadAttention'), '')}, "
    attn_cfgs += attn.format(repr("PETRMultiheadFlashAttention"), ", bias='window'") + "]"
    text = under("transformer", "decoder", "transformerlayers", attn_cfgs=attn_cfgs)
    (note,) = [n for n in lint(write(tmp_path / "dense.py", text, base)).notes if n.rule == "memory"]
    # 6 layers x (bias + its gradient + 8 heads' weights) x 1800 queries x 56400 keys x 2 bytes
    assert f"{6 * 10 * 1800 * 56400 * 2 / 2**30:.1f} GiB" in note.sentence
    assert note.sites == tuple(f"decoder.{i}.cross" for i in range(6))
    assert not [n for n in lint(base).notes if n.rule == "memory"]


def test_the_device_decides_what_can_run(tmp_path: Path) -> None:
    attn = "[dict(type='PETRMultiheadFlashAttention', embed_dims=96, num_heads=2, bias='local', impl='flex')]"
    config = write(
        tmp_path / "flex.py", under("aqr_config", "encoder_config", "transformerlayers", attn_cfgs=attn)
    )
    assert found(lint(config, "cuda")) == []
    ((rule, _, line),) = found(lint(config, "cpu"))
    assert (rule, line) == ("cannot-run", 2)


# --- fixing


def test_the_wrong_form_is_fixed_and_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = HERE / "configs/wrong_form.py"
    config = tmp_path / "config.py"
    text = wrong.read_text().replace("../../../../experiments/configs", str(CONFIGS))
    config.write_text(text)
    assert main(["lint", str(config)]) == 1
    assert config.read_text() == text
    assert main(["lint", str(config), "--fix"]) == 0
    # What the mission's document corrects: the flag is gone, and every other character is what it was.
    assert config.read_text() == text.replace(", use_flashbias=True", "")
    assert "1 fixed, no findings" in capsys.readouterr().out
    assert str(build_model(config).plan["aqr.0.cross"]) == "local/sdpa_math"
    assert main(["lint", str(config), "--fix"]) == 0
    assert config.read_text() == text.replace(", use_flashbias=True", "")


def test_a_flag_in_a_base_is_left_unless_asked(tmp_path: Path) -> None:
    base, child = tmp_path / "base.py", tmp_path / "child.py"
    flag = "[dict(type='PETRMultiheadFlashAttention', embed_dims=96, num_heads=2, use_flashbias=True)]"
    write(base, under("aqr_config", "encoder_config", "transformerlayers", attn_cfgs=flag))
    write(child, under(num_query="40"), base)
    before = base.read_text()
    assert main(["lint", str(child), "--fix"]) == 1
    assert base.read_text() == before
    assert "--fix --bases" in lint(child).wrong[0].advice
    assert main(["lint", str(child), "--fix", "--bases"]) == 0
    assert base.read_text() == before.replace(", use_flashbias=True", "")


def test_a_flag_that_another_site_needs_is_left(tmp_path: Path) -> None:
    text = """_size = dict(embed_dims=96, num_heads=2)
_cross = dict(type='PETRMultiheadFlashAttention', use_flashbias=True, **_size)
model = dict(pts_bbox_head=dict(
    bias_config=dict(use_local_bias=False),
    aqr_config=dict(encoder_config=dict(transformerlayers=dict(attn_cfgs=[_cross]))),
    transformer=dict(decoder=dict(transformerlayers=dict(attn_cfgs=[
        dict(type='MultiheadAttention', **_size), _cross])))))
"""
    config = write(tmp_path / "shared.py", text)
    assert main(["lint", str(config), "--fix"]) == 1
    assert config.read_text().endswith(text)
    (finding,) = lint(config).wrong
    assert finding.rule == "dead-flashbias"
    assert finding.sites == ("aqr.0.cross",)
    assert "decoder.2.cross shares it" in finding.advice


def test_a_flag_that_no_text_edit_reaches_is_left_with_a_sentence(tmp_path: Path) -> None:
    text = under("aqr_config", "encoder_config", "transformerlayers", attn_cfgs="[_attn]")
    start = "_attn = dict(type='PETRMultiheadFlashAttention', embed_dims=96, num_heads=2)\n"
    config = write(tmp_path / "statement.py", start + "_attn['use_flashbias'] = True\n" + text)
    before = config.read_text()
    assert main(["lint", str(config), "--fix"]) == 1
    assert config.read_text() == before
    (finding,) = lint(config).wrong
    assert finding.place.line == 3
    assert "by hand" in finding.advice


# --- output


def test_json_has_places_sentences_and_sites(capsys: pytest.CaptureFixture[str]) -> None:
    config = HERE / "configs/no_rank.py"
    assert main(["lint", str(config), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (finding,) = report["findings"]
    assert finding["file"] == str(config)
    assert finding["sites"] == ["decoder.1.cross"]
    assert finding["key"].endswith("transformerlayers.1.attn_cfgs.1.use_flashbias")
    assert "impl='rects'" in finding["advice"]
    assert [line["site"] for line in report["sites"] if line["wrong"]] == ["decoder.1.cross"]


def test_text_links_files_and_lines_and_lists_sites(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["lint", "tests/experiments/lint/configs/dropped_bias.py"]) == 1
    out = capsys.readouterr().out
    assert "wrong tests/experiments/lint/configs/dropped_bias.py:12 dropped-bias" in out
    assert "at decoder.0.cross … decoder.2.cross (3 sites)" in out
    assert "flash would drop the window bias: it takes neither bias nor mask." in out
    assert re.search(r"aqr.0.cross +mask: window 3 \(BEV\), 5 \(camera\) +sdpa_math +dense", out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no config file"),
        ("model = dict(\n", r"cannot be read as a config \(SyntaxError: .*line 1\)"),
        ("_base_ = ['nowhere.py']\n", "cannot be read as a config"),
        ("model = dict(type='CmtDetector')\n", "expected a model with a pts_bbox_head, found none"),
        ("raise RuntimeError('no')\n", r"cannot be read as a config \(RuntimeError: no\)"),
    ],
)
def test_what_is_no_config_is_wrong_usage(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.py"
    if text is not None:
        config.write_text(text)
    assert main(["lint", str(config)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.splitlines()) == 1


def test_a_printed_plan_lints_clean(tmp_path: Path) -> None:
    out = tmp_path / "printed.py"
    words = [
        "plan",
        str(MINI),
        "--choice",
        "decoder.*.cross=gaussian/rects",
        "--choice",
        "decoder.1.cross=none/rects",
    ]
    assert main([*words, "--out", str(out)]) == 0
    report = lint(out)
    assert found(report) == []
    assert [line.receives for line in report.sites if line.site == "decoder.1.cross"] == ["nothing"]


def test_a_place_spells_as_editors_link_it() -> None:
    assert str(SourcePlace(Path("a/b.py"), 3, 7)) == "a/b.py:3"


def test_fixing_keeps_permissions_and_line_ends(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    shutil.copy(HERE / "configs/wrong_form.py", config)
    text = config.read_text().replace("../../../../experiments/configs", str(CONFIGS)).replace("\n", "\r\n")
    config.write_bytes(text.encode())
    config.chmod(0o640)
    assert main(["lint", str(config), "--fix"]) == 0
    assert config.read_bytes() == text.replace(", use_flashbias=True", "").encode()
    assert config.stat().st_mode & 0o777 == 0o640


CAMERAS = "model = dict(pts_branch=None, pts_bbox_head=dict(type='CmtImageHead'))\n"
BEV = (
    "model = dict(image_size=None, img_backbone=None, img_neck=None,\n"
    "             pts_bbox_head=dict(type='CmtLidarHead', separate_head=dict(final_kernel=3)))\n"
)
NO_KEYS = "optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True)))\n"


@pytest.mark.parametrize(("text", "keys"), [(CAMERAS, 6 * 12 * 30), (BEV, 32 * 32)], ids=["cameras", "lidar"])
def test_models_of_one_sensor_have_no_finding(tmp_path: Path, text: str, keys: int) -> None:
    config = write(tmp_path / "one.py", text + NO_KEYS)
    assert found(lint(config)) == []
    assert {site.sizes.keys for site in survey(config).sites if site.name.endswith("cross")} == {keys}


class OneNormTooNarrow(nn.Module):
    """A backbone that fails in the first batch: its batch norm has four channels, and its map has eight."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.norm(self.convolution(images))]


def test_a_batch_norm_of_other_channels_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdet3d.registry import MODELS

    monkeypatch.setitem(MODELS.module_dict, "OneNormTooNarrow", OneNormTooNarrow)
    backbone = "img_backbone=dict(_delete_=True, type='OneNormTooNarrow')"
    report = lint(write(tmp_path / "one.py", f"model = dict({backbone})\n{NO_KEYS}"))
    said = "img_backbone refuses its input: a batch norm of 4 channels got 8: the first batch would fail"
    assert ("shapes-disagree", 2, said) in [(f.rule, f.place.line, f.sentence) for f in report.wrong]


def test_a_head_without_its_branch_is_found(tmp_path: Path) -> None:
    report = lint(write(tmp_path / "one.py", "model = dict(pts_bbox_head=dict(type='CmtImageHead'))\n"))
    assert [(f.rule, f.place.line, f.sentence) for f in report.wrong] == [
        ("cannot-build", 2, "CmtImageHead does not read pts_branch: the model cannot be built")
    ]


def test_the_page_about_lint_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/lint.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:1]
    (said,) = re.findall(r"```console\n\$ biaswise lint my_cmt_aqr.py\n(.*?)```", page, re.DOTALL)
    shutil.copytree(CONFIGS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "my_cmt_aqr.py").write_text(config)
    monkeypatch.chdir(tmp_path)
    assert main(["lint", "my_cmt_aqr.py"]) == 1
    assert capsys.readouterr().out.split() == said.split()
