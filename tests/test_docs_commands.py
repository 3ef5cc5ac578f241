"""Documents: every command that they show exists, with every option that they give it."""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from experiments.cli.main import build_parser
from tests.test_docs import OF_TODAY, of

IN_LINE = re.compile(r"`(?:\.venv/bin/)?biaswise (\w[^`\n]*)`")
IN_BLOCK = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?biaswise (\w.*)$", re.MULTILINE)
BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line, without ``biaswise``."""
    yield from (line.split() for line in IN_LINE.findall(text))
    for block in BLOCK.findall(text):
        for line in IN_BLOCK.findall(block.replace("\\\n", " ")):
            yield line.split("#")[0].split()


def inner(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the commands below a command, by name."""
    groups = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next(groups, {})


def unknown(words: list[str]) -> list[str]:
    """List what of a command line the command line does not have."""
    parser, rest = build_parser(), words
    while rest and inner(parser) and not rest[0].startswith("-"):
        if rest[0] not in inner(parser):
            return [rest[0]]
        parser, rest = inner(parser)[rest[0]], rest[1:]
    options = {option for action in parser._actions for option in action.option_strings}
    given = (word.strip("[],.;:…").partition("=")[0] for word in rest)
    return [option for option in given if option.startswith("--") and option not in options]


def test_unknown_commands_and_options_are_seen() -> None:
    assert unknown(["study", "run", "demo", "--max-trials", "3"]) == []
    assert unknown(["study", "walk", "demo"]) == ["walk"]
    assert unknown(["study", "run", "demo", "--trials", "3"]) == ["--trials"]


@pytest.mark.parametrize("path", OF_TODAY, ids=of)
def test_commands_exist(path: Path) -> None:
    lines = {" ".join(words): unknown(words) for words in commands(path.read_text(encoding="utf-8"))}
    assert {line: missing for line, missing in lines.items() if missing} == {}
