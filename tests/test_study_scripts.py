"""The scripts under docs/studies import names of today's tree, so that they run on it."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
OURS = {"operators", "pipeline", "experiments", "tests"}
OF_OLD = {"mini-step/before.py"}
"""Scripts that another checkout runs, of a commit that the script names."""


@pytest.mark.parametrize(
    "script",
    sorted(path for path in STUDIES.rglob("*.py") if str(path.relative_to(STUDIES)) not in OF_OLD),
    ids=lambda path: str(path.relative_to(STUDIES)),
)
def test_imported_names_exist(script: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(script.read_text())):
        if not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] not in OURS:
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            is_module = hasattr(module, "__path__") and importlib.util.find_spec(name) is not None
            if not hasattr(module, alias.name) and not is_module:
                missing.append(f"line {node.lineno}: {name}")
    assert not missing
