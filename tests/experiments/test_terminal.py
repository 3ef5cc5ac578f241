"""What comes from outside is printed as text: brackets stay, control characters and secrets do not."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from experiments.terminal import Terminal
from pipeline.printable import printable, say

ROOT = Path(__file__).parents[2]
OUTSIDE = [
    ("a [/tmp/x] b", "a [/tmp/x] b"),
    ("[/red] [red]", "[/red] [red]"),
    ("[nan, nan] :smile:", "[nan, nan] :smile:"),
    ("a\x1b[31mred\x9b0m\r\x07", "a\\x1b[31mred\\x9b0m\\r\\x07"),
    ("turned \u202e round", "turned \\u202e round"),
    ("half \ud800 a pair", "half \\ud800 a pair"),
    ("postgresql://me:hunter22@db/x", "postgresql://me:***@db/x"),
]


def shown(show, **options):
    out = io.StringIO()
    show(Terminal(file=out, width=120, **options))
    return out.getvalue()


def table_of(text):
    table = Table(text, title=text)
    table.add_row(text)
    return table


@pytest.mark.parametrize(("text", "wanted"), OUTSIDE)
def test_text_is_no_markup(text, wanted, capsys):
    assert printable(text) == wanted
    assert shown(lambda t: t.print(text, style="red", soft_wrap=True)) == f"{wanted}\n"
    assert shown(lambda t: t.print(table_of(text))).count(wanted) == 3
    say(text)
    assert capsys.readouterr().out == f"{wanted}\n"


def test_a_terminal_gets_no_escape_but_ours():
    options = {"force_terminal": True, "color_system": "standard"}
    coloured = shown(lambda t: t.print("\x1b]0;title\x07", style="red", highlight=False), **options)
    assert coloured == "\x1b[31m\\x1b]0;title\\x07\x1b[0m\n"


def test_all_commands_print_through_it():
    """No other file makes a console, or lets rich read markup."""
    for path in (ROOT / "experiments").rglob("*.py"):
        if path.name == "terminal.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert "rich.console" not in text, path
        assert "from_markup" not in text, path
        assert text.count("TextColumn(") == text.count("markup=False"), path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_that_is_not_utf_8(encoding, tmp_path):
    """The marks of the verdicts are spelled out where the terminal has no character for them."""
    study = shutil.copytree(ROOT / "tests/golden/report", tmp_path / "golden")
    words = [sys.executable, "-m", "experiments.cli", "study", "report", str(study)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"PAYS" in done.stdout
