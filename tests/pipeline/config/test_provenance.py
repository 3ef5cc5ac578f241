"""Where keys were written: mmengine's own reading of the same files is the oracle for what is merged."""

from pathlib import Path

import pytest

import pipeline.detector  # noqa: F401  makes mmengine importable without warnings
from pipeline.config.provenance import Key, read_source

ROOT = Path(__file__).parents[3]


def line_of(config: Path, *key: str | int) -> tuple[str, int, bool]:
    place, exact = read_source(config).find(key)
    return place.file.name, place.line, exact


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    (tmp_path / "base.py").write_text(
        "shared = dict(a=1, b=2)\n"  # 1
        "model = dict(\n"
        "    type='M',\n"
        "    part=dict(**shared, c=3),\n"  # 4
        "    other=dict(x=1),\n"
        "    many=[dict(n=0), dict(n=1)],\n"  # 6
        ")\n"
    )
    (tmp_path / "child.py").write_text(
        "_base_ = './base.py'\n"
        "steps = [dict(n=5)]\n"  # 2
        "model = dict(\n"
        "    part=dict(b=20),\n"  # 4
        "    other=dict(_delete_=True, y=1),\n"  # 5
        "    many=[*steps, *_base_.model.many, {'n': 9}],\n"  # 6
        "    all=[dict(k=i) for i in range(3)],\n"  # 7
        "    two=[dict(k=1)] * 2,\n"  # 8
        "    sum=steps + [dict(n=6)],\n"  # 9
        ")\n"
        "model['late'] = dict(z=1)\n"  # 11
        "model['part']['d'] = 4\n"  # 12
    )
    return tmp_path / "child.py"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (("model", "type"), ("base.py", 3, True)),
        (("model", "part", "a"), ("base.py", 1, True)),  # through a spread
        (("model", "part", "b"), ("child.py", 4, True)),
        (("model", "part", "c"), ("base.py", 4, True)),
        (("model", "part", "d"), ("child.py", 12, True)),
        (("model", "other", "y"), ("child.py", 5, True)),
        (("model", "other", "x"), ("child.py", 5, False)),  # deleted
        (("model", "many", 0, "n"), ("child.py", 2, True)),  # through a variable and a star
        (("model", "many", 2, "n"), ("base.py", 6, True)),
        (("model", "many", 3, "n"), ("child.py", 6, True)),
        (("model", "all", 2, "k"), ("child.py", 7, True)),
        (("model", "two", 1, "k"), ("child.py", 8, True)),
        (("model", "sum", 1, "n"), ("child.py", 9, True)),
        (("model", "late", "z"), ("child.py", 11, True)),
        (("model", "no", "such"), ("child.py", 3, False)),
        (("nothing",), ("child.py", 1, False)),
    ],
)
def test_keys_are_found_where_they_were_written(
    configs: Path, key: Key, expected: tuple[str, int, bool]
) -> None:
    assert line_of(configs, *key) == expected


def test_names_that_are_read_are_variables(configs: Path) -> None:
    used = read_source(configs).used
    assert {"shared", "steps", "model"} <= used
    assert "many" not in used


def test_a_config_that_is_not_python_is_read_as_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": {}}')
    assert line_of(tmp_path / "config.json", "model") == ("config.json", 1, False)


def keys_of(node: object, at: Key = ()) -> list[Key]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [key for name, child in items for key in [(*at, name), *keys_of(child, (*at, name))]]


@pytest.mark.parametrize("config", sorted((ROOT / "experiments/configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_key_of_the_shipped_models_is_found_on_a_line_that_names_it(config: Path) -> None:
    from mmengine.config import Config

    source = read_source(config)
    keys = keys_of({"model": Config.fromfile(config).model.to_dict()})
    assert len(keys) > 100
    for key in keys:
        place, exact = source.find(key)
        assert exact, key
        if isinstance(key[-1], str):
            assert key[-1] in place.file.read_text().splitlines()[place.line - 1], key
