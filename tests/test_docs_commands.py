"""Documents: a command that is shown has its options, and a test runs it or the page's source says why not.

A block of code names its language: ``bash`` holds commands alone, ``console`` commands after ``$`` and what
they print, ``python`` code that runs on a CPU as it stands. ``<!-- not run: REASON -->`` above a block, which
a reader does not see, excuses it. Commands within a sentence only need to exist.
"""

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.cli.main import build_parser
from tests.test_docs import OF_TODAY, ROOT, of

LANGUAGES = {"bash", "console", "python", "text"}
IN_LINE = re.compile(r"`(?:\.venv/bin/)?biaswise (\w[^`\n]*)`")
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
ASSIGNMENT = re.compile(r"[A-Z_]+=")

BY_CI = ("make lint", "make docs", "make test", "make test-all")
RUN_BY = {
    "cli/test_data.py": {
        "test_every_command_takes_every_form_that_its_help_names": (
            *("biaswise data check", "biaswise data infos", "biaswise data objects", "biaswise data shard"),
            "biaswise data show",
        ),
        "test_evaluate_needs_no_other_split": ("biaswise data synth", "biaswise evaluate"),
    },
    "cli/test_main.py": {
        "test_listing_recipes_loads_neither_ray_nor_models": ("biaswise study list",),
        "test_status_tells_what_failed_and_exits_1": ("biaswise study status",),
    },
    "cli/test_power.py": {"test_it_shows_gains_that_shrink_with_the_seeds": ("biaswise study power",)},
    "cli/test_new_study.py": {
        "test_the_file_is_a_study_of_the_users_config_data_and_checkpoint": ("biaswise study new",)
    },
    "cluster/test_study_file_job.py": {
        "test_the_file_goes_with_the_job_and_its_study_stays_when_ray_removes_the_copy": ("ray job submit",)
    },
    "cluster/test_check.py": {
        "test_a_shipped_file_lacks_only_what_its_user_knows": ("biaswise cluster check",)
    },
    "cluster/test_job_submission.py": {
        "test_a_job_is_stopped_in_the_middle_and_the_same_command_ends_the_study": (
            *("biaswise study submit", "biaswise study run", "ray job stop"),
        )
    },
    "lint/test_lint.py": {
        "test_the_wrong_form_is_fixed_and_builds": ("biaswise lint",),
        "test_a_printed_plan_lints_clean": ("biaswise plan",),
    },
    "study/test_final_report.py": {"test_a_report_runs_no_config": ("biaswise study report",)},
    "study/test_price_run.py": {
        "test_the_command_times_the_smallest_study_in_a_process_of_its_own": ("biaswise study time",)
    },
    "study/test_stored.py": {
        "test_killed_its_folder_lost_and_gone_on_with_from_the_bucket": ("biaswise study run",)
    },
}
"""File below tests/experiments -> test -> first words of the commands that it runs."""

KNOWN = {*BY_CI, *(words for tests in RUN_BY.values() for commands in tests.values() for words in commands)}


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: what stands after the three backticks.
        text: its lines.
        reason: why it is not run; empty if it is.
    """

    language: str
    text: str
    reason: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines for words in _split(line)] if self.language != "python" else []


def _split(line: str) -> Iterator[list[str]]:
    """Yield the words of the commands of a line, without variables and the folder of the environment."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word == "&&" and words:
            yield words
            words = []
        elif word not in ("&&", "export") and (words or not ASSIGNMENT.match(word)):
            words.append(word.removeprefix(".venv/bin/"))


def blocks(text: str) -> list[Block]:
    """Return the blocks of code of a document."""
    return [Block(m["language"], m["text"], m["reason"] or "") for m in BLOCK.finditer(text)]


def inner(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the commands below a command, by name."""
    groups = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next(groups, {})


def unknown(words: list[str]) -> list[str]:
    """List what of a command within a sentence the command line does not have."""
    parser, rest = build_parser(), words
    while rest and inner(parser) and not rest[0].startswith("-"):
        if rest[0] not in inner(parser):
            return [rest[0]]
        parser, rest = inner(parser)[rest[0]], rest[1:]
    options = {option for action in parser._actions for option in action.option_strings}
    given = (word.strip("[],.;:…").partition("=")[0] for word in rest)
    return [option for option in given if option.startswith("--") and option not in options]


def parses(words: list[str]) -> bool:
    """Whether the words after ``biaswise`` are a whole command line."""
    try:
        build_parser().parse_args(words)
    except SystemExit:
        return False
    return True


def faults(text: str) -> Iterator[str]:
    """Yield what is wrong with the blocks of code of a document."""
    for block in blocks(text):
        if block.language not in LANGUAGES:
            yield f"a block in {block.language or 'no language'}: {block.text[:60]}"
        if block.language not in ("bash", "console"):
            continue
        for words in block.commands:
            line = " ".join(words)
            if words[0] == "biaswise" and not parses(words[1:]):
                yield f"does not parse: {line}"
            if not block.reason and not any(f"{line} ".startswith(f"{known} ") for known in KNOWN):
                yield f"neither run by a test nor marked: {line}"


def test_unknown_commands_and_options_are_seen() -> None:
    assert unknown(["study", "run", "demo", "--max-trials", "3"]) == []
    assert unknown(["study", "walk", "demo"]) == ["walk"]
    assert unknown(["study", "run", "demo", "--trials", "3"]) == ["--trials"]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("```bash\nA_B=1 .venv/bin/biaswise study run \\\n  demo  # as shipped\n```", []),
        ("```console\n$ biaswise study list\nbiaswise study nothing\n```", []),
        ("```bash\nbiaswise study run demo --trials 3\n```", ["does not parse: "]),
        ("```bash\nbiaswise study report\n```", ["does not parse: "]),
        ("```bash\nmake test && make tea\n```", ["neither run by a test nor marked: make tea"]),
        ("<!-- not run: no kettle -->\n```bash\nmake tea\n```", []),
        ("<!-- not run: no kettle -->\n```bash\nbiaswise tea\n```", ["does not parse: "]),
        ("```\nmake tea\n```", ["a block in no language"]),
    ],
)
def test_faults_are_seen(text: str, seen: list[str]) -> None:
    found = list(faults(text))
    assert len(found) == len(seen)
    assert all(fault.startswith(start) for fault, start in zip(found, seen, strict=True))


@pytest.mark.parametrize("path", OF_TODAY, ids=of)
def test_commands_in_sentences_exist(path: Path) -> None:
    lines = IN_LINE.findall(path.read_text(encoding="utf-8"))
    missing = {line: unknown(line.split()) for line in lines}
    assert {line: words for line, words in missing.items() if words} == {}


@pytest.mark.parametrize("path", OF_TODAY, ids=of)
def test_commands_in_blocks_parse_and_are_run_or_marked(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


PYTHON = [
    pytest.param(block.text, id=f"{of(path)}-{number}")
    for path in OF_TODAY
    for number, block in enumerate(blocks(path.read_text(encoding="utf-8")))
    if block.language == "python" and not block.reason
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_in_documents_runs_on_a_cpu(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "a block of a document", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("file", RUN_BY)
def test_the_tests_that_run_them_exist(file: str) -> None:
    text = (ROOT / "tests/experiments" / file).read_text(encoding="utf-8")
    assert [name for name in RUN_BY[file] if f"\ndef {name}(" not in text] == []


def test_ci_runs_what_is_said_to_be_run_by_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    run = set((ROOT / ".ci/run").read_text(encoding="utf-8").split("\nmake ")[1].split())
    for target in tuple(run):
        needs = re.search(rf"^{target}:(.*)$", makefile, re.MULTILINE)
        run |= set(needs[1].split()) if needs else set()
    assert {command.removeprefix("make ") for command in BY_CI} <= run
