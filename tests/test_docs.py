"""Documents: links lead somewhere, named files exist, lines are short enough to read beside code."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
ALL = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
"""Every document of the project."""

LOG, CHANGES = ROOT / "docs/log.md", ROOT / "CHANGELOG.md"
MAP = ROOT / "docs/map.md"
OF_TODAY = [path for path in ALL if path.parent in (ROOT, ROOT / "docs") and path not in (LOG, CHANGES)]
"""Documents that speak of the code as it is; log, changelog and studies name files of their day."""

GENERATED = {ROOT / "docs/bad_inputs.md"}
"""Written by a test, sentence for sentence as the commands say them."""

COLUMNS = 100
LINK = re.compile(r"(?<!\\)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
NAMED = re.compile(r"`((?:operators|pipeline|experiments|tests|docs)/[\w./-]*)`")
TEST_FILE = re.compile(r"`(test_\w+\.py)`")
PLACEHOLDER = "NAME"
"""What a document writes where a reader puts a name of their own."""


def of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line outside code blocks and generated tables."""
    in_code = in_table = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif line == "<!-- table -->":
            in_table = True
        elif line == "<!-- end of table -->":
            in_table = False
        elif not in_code and not in_table:
            yield number, line


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for _, line in prose(text):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def dead_links(path: Path, text: str) -> list[str]:
    """List the links of a document at ``path`` that lead to no file or no heading."""
    dead = []
    for number, line in prose(text):
        for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = unquote(target).partition("#")
            goal = (path.parent / file).resolve() if file else path
            if not goal.is_relative_to(ROOT) or not goal.exists():
                dead.append(f"{of(path)}:{number}: no file {target}")
            elif anchor and anchor not in anchors(text if goal == path else goal.read_text()):
                dead.append(f"{of(path)}:{number}: no heading {target}")
    return dead


@pytest.mark.parametrize("path", ALL, ids=of)
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("# Two words\n[a](#two-words) [b](docs/map.md) [c](https://nowhere.example/x.md)", 0),
        ("# Twice?\n# Twice?\n[a](#twice) [b](#twice-1)", 0),
        ("[a](docs/no_such_page.md)", 1),
        ("![a](docs/no_such_picture.png)", 1),
        ("[a](docs/map.md#no-such-heading) [b](#nor-this)", 2),
        ("[a](../outside.md)", 1),
        ("`[a](no_such.md)`\n```\n[b](no_such.md)\n```", 0),
    ],
)
def test_dead_links_are_seen(text: str, dead: int) -> None:
    assert len(dead_links(ROOT / "README.md", text)) == dead


@pytest.mark.parametrize("path", [*(p for p in OF_TODAY if p not in GENERATED), CHANGES], ids=of)
def test_no_line_of_prose_or_of_a_table_is_over_100_columns(path: Path) -> None:
    long = [f"{of(path)}:{number}" for number, line in prose(path.read_text()) if len(line) > COLUMNS]
    assert long == []


@pytest.mark.parametrize("path", OF_TODAY, ids=of)
def test_named_files_exist(path: Path) -> None:
    text = path.read_text()
    named = [name for name in NAMED.findall(text) if PLACEHOLDER not in name]
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [name for name in TEST_FILE.findall(text) if not [*(ROOT / "tests").rglob(name)]]
    assert missing == []


def test_the_map_names_what_its_files_hold() -> None:
    """The table "I want to change ...": what to look for is in the file beside it."""
    rows = [line.split("|")[2:4] for line in MAP.read_text().splitlines() if line.count("|") == 4]
    checked = 0
    for files, names in rows:
        for file in NAMED.findall(files):
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{file} has no {name}"
                checked += 1
    assert checked >= 6
