"""The site of the documents: its links, its list of commands, and that it fetches nothing from elsewhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from experiments.cli.main import build_parser
from tests.test_docs import ROOT

FETCHED = re.compile(r"<(?:script|img|iframe|link)[^>]*\b(?:src|href)=[\"']?(?:https?:)?//")
"""What a browser fetches from another server when it opens a page."""


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("index.md", "[a](docs/map.md#x)", "[a](map.md#x)"),
        ("index.md", "![a](docs/images/a.png)", "![a](images/a.png)"),
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("map.md", "[a](../README.md)", "[a](index.md)"),
        ("studies/demo/README.md", "[a](../../../CHANGELOG.md)", "[a](../../changelog.md)"),
        (
            "map.md",
            "[a](design.md) [b](#c) [d](https://e.org/f)",
            "[a](design.md) [b](#c) [d](https://e.org/f)",
        ),
    ],
)
def test_links_lead_where_their_targets_are_in_the_site(
    hooks: ModuleType, page: str, link: str, moved: str
) -> None:
    assert hooks.moved_links(link, page) == moved


def test_every_command_and_option_is_listed(hooks: ModuleType) -> None:
    text = "\n".join(hooks.command_reference())
    sections = dict(re.findall(r"^## (.*)\n([\s\S]*?)(?=^## |\Z)", text, re.MULTILINE))
    commands = dict(hooks.commands("biaswise", build_parser()))
    assert list(sections) == list(commands)
    for words, parser in commands.items():
        options = {option for action in parser._actions for option in action.option_strings} - {
            "-h",
            "--help",
        }
        assert {option for option in options if option not in sections[words]} == set()
    assert str(ROOT) not in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of mkdocs' plugins
def test_the_site_fetches_nothing_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)  # where mkdocstrings looks for the code
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    assert [page.name for page in pages if FETCHED.search(page.read_text(encoding="utf-8"))] == []
