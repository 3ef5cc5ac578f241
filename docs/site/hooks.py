"""What mkdocs does not do by itself: pages from files outside docs/, and the list of all commands.

mkdocs calls the functions whose names begin with ``on_`` (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

import argparse
import re
from collections.abc import Iterator
from os.path import dirname, normpath, relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from experiments.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File in the project's root -> page of the site."""

FILES = {page: file for file, page in PAGES.items()}
COMMANDS = "<!-- commands: `make docs` puts them here, from the parsers -->"
"""Line that gives way to ``command_reference``."""

RECORDS = ("log.md", "design.md", "bad_inputs.md", "changelog.md", "studies/")
"""Pages that a search shows after those that tell how something is done."""

LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made here."""
    for file, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page to where their targets are, fill in the commands, rank records last."""
    if page.file.src_uri.startswith(RECORDS):
        page.meta["search"] = {"boost": 0.3}
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(command_reference()))
    return moved_links(markdown, page.file.src_uri)


def moved_links(markdown: str, page: str) -> str:
    """Rewrite links from or to the files outside docs/.

    Args:
        markdown: text of the page, with links as they are right in the checkout.
        page: its path in the site.
    """
    folder = dirname(FILES.get(page, f"docs/{page}"))

    def moved(link: re.Match[str]) -> str:
        target = normpath(f"{folder}/{link[2]}" if folder else link[2])
        if page not in FILES and target not in PAGES:
            return link[0]
        goal = PAGES.get(target, target.removeprefix("docs/"))
        return f"{link[1]}{relpath(goal, dirname(page) or '.')}{link[3]}"

    return LINK.sub(moved, markdown)


def command_reference() -> Iterator[str]:
    """Yield the lines of the list of all commands, from the parsers that read them."""
    for words, parser in commands("biaswise", build_parser()):
        yield from (f"## {words}", "", _cell(parser.description), "")
        if rows := [(_spelled(action), _help(parser, action)) for action in parser._actions[1:]]:
            yield from ("| argument | means |", "|---|---|")
            yield from (f"| {spelled} | {_cell(text)} |" for spelled, text in rows)
            yield ""
        if parser.epilog:
            yield from ("```", parser.epilog.removeprefix("example: "), "```", "")


def commands(words: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command below a parser, with its words; groups of commands are passed through."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands(f"{words} {name}", inner)


def _spelled(action: argparse.Action) -> str:
    """Return how an argument is typed: ``--option VALUE``, or the name of a positional argument."""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices is not None and action.metavar is None:
        value = ",".join(map(str, action.choices))
    value = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{value}`"
    return f"`{', '.join(action.option_strings)}{f' {value}' if action.nargs != 0 else ''}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}


def _cell(text: str | None) -> str:
    """Return a text for a cell of a table: no line ends, no bars, no path of this machine, no HTML."""
    plain = " ".join((text or "").split()).replace(f"{ROOT}/", "")
    return plain.replace("|", "\\|").replace("<", "&lt;")
