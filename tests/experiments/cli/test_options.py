"""``KEY=VALUE`` on the command line, and which tables of a dataset are read."""

import json
from pathlib import Path

import pytest
from mmengine.config import DictAction

from experiments.cli.main import build_parser
from experiments.cli.options import (
    OptionError,
    complete_version,
    read_assignments,
    read_cfg_options,
    read_value,
)
from pipeline.detector.build import load_config

CONFIG = "experiments/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"


VALUES = [
    ("3", 3),
    ("-0.5", -0.5),
    ("1e-4", 1e-4),
    (".5", 0.5),
    ("window", "window"),
    ("True", True),
    ("None", None),
    ("[1,2]", [1, 2]),
    ("a,b", ["a", "b"]),
    ("[a,b]", ["a", "b"]),
    ("(1,2)", [1, 2]),
    ("[(1,2),[a,b],c]", [[1, 2], ["a", "b"], "c"]),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_read_like_those_of_mmengine(text: str, value: object) -> None:
    theirs = DictAction._parse_iterable(text)
    assert read_value(text) == value == json.loads(json.dumps(theirs)), "tuples are lists in JSON"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("", ""),
        ("true", True),
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("a b", "a b"),
        ("[]", []),
        ("()", []),
        ("(1,)", [1]),
        ("s3://bucket/data", "s3://bucket/data"),
    ],
)
def test_values_may_be_json(text: str, value: object) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["[1,(2,3]", "(1,2))", "[a,b]]", "1,(2"])
def test_brackets_that_do_not_match_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--set a=.*: the brackets of .* do not match"):
        read_assignments("--set", [f"a={text}"], "a=1")


@pytest.mark.parametrize("word", ["a.b", "=3", ""])
def test_an_assignment_without_key_or_value_is_refused(word: str) -> None:
    with pytest.raises(OptionError, match=rf"--cfg-options {word}: expected KEY=VALUE, such as a.b=1"):
        read_assignments("--cfg-options", [word], "a.b=1")


def cfg_options(*words: str) -> tuple[tuple[str, str], ...]:
    return read_cfg_options(build_parser().parse_args(["throughput", CONFIG, *words]))


def test_cfg_options_may_be_repeated() -> None:
    assert cfg_options("--cfg-options", "a=1", "b=x", "--cfg-options", "c=2") == (
        ("a", "1"),
        ("b", '"x"'),
        ("c", "2"),
    )
    assert cfg_options() == ()


def test_overrides_reach_a_config_with_bases() -> None:
    words = ["optim_wrapper.optimizer.lr=3e-5", "model.pts_bbox_head.aqr_config.window_camera=9"]
    cfg = load_config(CONFIG, cfg_options("--cfg-options", *words))
    assert cfg.optim_wrapper.optimizer.lr == 3e-5
    assert cfg.model.pts_bbox_head.aqr_config.window_camera == 9
    assert cfg.model.pts_bbox_head.aqr_config.window_lidar == 5


@pytest.mark.parametrize(
    ("folders", "words", "version", "split"),
    [
        (["v1.0-trainval"], [], "v1.0-trainval", "train"),
        (["v1.0-mini", "v1.0-trainval"], [], "v1.0-trainval", "train"),
        (["v1.0-mini", "v1.0-trainval"], ["--version", "v1.0-mini"], "v1.0-mini", "mini_train"),
        (["v1.0-trainval"], ["--split", "val"], "v1.0-trainval", "val"),
        ([], [], "v1.0-mini", "mini_train"),  # shards or an info file
    ],
)
def test_version_and_split_are_those_of_the_tables_that_are_there(
    folders: list[str], words: list[str], version: str, split: str, tmp_path: Path
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sample.json").write_text("[]")
    arguments = build_parser().parse_args(["data", "show", str(tmp_path), *words])
    complete_version(arguments, tmp_path)
    assert (arguments.version, arguments.split) == (version, split)
