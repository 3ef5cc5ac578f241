"""How a command is declared, which options several commands share, and how ``KEY=VALUE`` is read."""

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from pipeline.storage.paths import default_runs_dir

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

WORDS = {"True": True, "False": False, "None": None}
"""Python's constants. JSON spells them differently; people write both."""


MINI = "v1.0-mini"
"""Version of nuScenes that generated data has."""


class OptionError(ValueError):
    """An option whose value cannot be used."""


class Command(ABC):
    """One command: its name, its help, its options, and what it does.

    All modules of commands are imported for ``biaswise --help``. A command therefore imports torch, Ray and
    other large libraries inside ``run``.

    Attributes:
        name: the word that is typed.
        help: what it does, one clause without a full stop.
        example: a command line that works, without the word ``biaswise``.
        goes_on: whether the command, interrupted and started again, goes on with what was done.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    example: ClassVar[str]
    goes_on: ClassVar[bool] = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 (a command without options)
        """Declare the options."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command; return its exit code: 0 done, 1 findings or failed trials."""

    def declare(self, subparsers: Subparsers) -> None:
        """Add the command to a parser."""
        parser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=f"{_sentence(self.help)}.",
            epilog=f"example: biaswise {self.example}",
        )
        self.add_arguments(parser)
        parser.set_defaults(run=self.run, goes_on=self.goes_on)


@dataclass(frozen=True)
class Group:
    """A command that has commands of its own, such as ``study``."""

    name: str
    help: str
    commands: tuple[Command, ...]

    def declare(self, subparsers: Subparsers) -> None:
        """Add the group and its commands to a parser."""
        parser = subparsers.add_parser(self.name, help=self.help, description=f"{_sentence(self.help)}.")
        inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for command in self.commands:
            command.declare(inner)


def _sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:]


CONFIGS_ARE_CODE = "a config in Python is run as code: use none that you do not trust"
"""What the help of every command says that reads a config."""


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the path of a config."""
    parser.add_argument("config", help=f"mmengine config file; {CONFIGS_ARE_CODE}")


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--runs-dir``."""
    parser.add_argument(
        "--runs-dir", metavar="DIR", default=default_runs_dir(), help="folder of the studies (%(default)s)"
    )


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add ``--storage``."""
    text = (
        "where studies are kept as well: s3://bucket/prefix, gs://bucket/prefix (where the study was before)"
    )
    parser.add_argument("--storage", default="", metavar="URI", help=text)


def add_packing(parser: argparse.ArgumentParser) -> None:
    """Add ``--concurrent`` and ``--arms-per-worker``."""
    parser.add_argument(
        "--concurrent",
        type=int,
        metavar="N",
        help="groups of workers at once, each with one trial or a cohort (as the recipe says)",
    )
    parser.add_argument(
        "--arms-per-worker",
        type=int,
        metavar="N",
        help="most trials of a seed in a cohort: a group of workers trains them together, over one loader "
        "and one frozen trunk; 1: every trial alone (as many as keep all groups busy, or by the probe)",
    )


def add_no_mlflow(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-mlflow``."""
    parser.add_argument("--no-mlflow", action="store_true", help="send nothing to MLflow")


def add_conditions(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--conditions``.

    Args:
        parser: of the command.
        default: which conditions are taken without the option, for the help.
    """
    parser.add_argument("--conditions", default="", help=f"names, comma-separated ({default})")


def add_split(parser: argparse.ArgumentParser, which: str) -> None:
    """Add ``--version`` and ``--split`` of a dataset that is read; ``complete_version`` fills them in.

    Args:
        parser: of the command.
        which: ``train`` or ``val``: the split without the option.
    """
    add_version(parser)
    parser.add_argument("--split", default="", help=f"devkit split (the one to {which} on)")
    parser.set_defaults(which=which)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version`` of a dataset that is read; ``complete_version`` fills it in."""
    parser.add_argument("--version", default="", help="name of the tables folder (the one that is there)")


def complete_version(arguments: argparse.Namespace, root: Path) -> None:
    """Fill in ``--version`` and ``--split``, where they are not given, from the tables of a dataset.

    A place without tables (an info file, shards, nothing at all) gets those of v1.0-mini: who reads it needs
    none, or says what is missing.
    """
    from experiments.recipes.overrides import SPLITS
    from pipeline.data.formats.nuscenes_tables import find_version  # imports numpy
    from pipeline.data.sample import DataError

    if not arguments.version:
        try:
            arguments.version = find_version(root)
        except DataError:
            arguments.version = MINI
    if not getattr(arguments, "split", True):
        train, val = SPLITS.get(arguments.version, SPLITS[MINI])
        arguments.split = train if arguments.which == "train" else val


def add_missing_cameras(parser: argparse.ArgumentParser) -> None:
    """Add ``--missing-cameras`` of a dataset."""
    parser.add_argument(
        "--missing-cameras",
        choices=("refuse", "black"),
        default="refuse",
        help="a frame without one of its six images: refuse it, or show that camera black (%(default)s)",
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``: overrides of a config, as in mmengine's tools."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys, as in mmengine's tools, such as optim_wrapper.optimizer.lr=1e-4",
    )


def read_cfg_options(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Read ``--cfg-options``: (dotted key, JSON text) pairs, as ``TrialSettings.overrides`` holds them.

    Raises:
        OptionError: a word without ``=``, or a value whose brackets do not match.
    """
    example = "optim_wrapper.optimizer.lr=1e-4"
    pairs = read_assignments("--cfg-options", arguments.cfg_options, example)
    return tuple((key, json.dumps(value)) for key, value in pairs)


def read_assignments(option: str, words: Iterable[str], example: str) -> list[tuple[str, Any]]:
    """Read the ``KEY=VALUE`` words of an option.

    Args:
        option: its name, for the message.
        words: as typed.
        example: a word that can be read, for the message.

    Returns:
        (key, value) pairs in the order of the words.

    Raises:
        OptionError: a word without ``=``, an empty key, or a value whose brackets do not match.
    """
    pairs = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise OptionError(f"{option} {word}: expected KEY=VALUE, such as {example}")
        try:
            pairs.append((key, read_value(text)))
        except OptionError as error:
            raise OptionError(f"{option} {word}: {error}") from error
    return pairs


def read_value(text: str) -> Any:
    """Read a value as mmengine's ``DictAction`` does, or as JSON.

    ``3``, ``1e-4``, ``True``, ``None``; ``a,b``, ``[a,b]`` and ``(1,2)`` are lists, which may be nested;
    ``{"a": 1}`` is a dict; ``"3"`` is the string 3. Everything else is a string as it stands.

    Raises:
        OptionError: brackets that do not match.
    """
    for parse in (json.loads, WORDS.__getitem__, int, float):
        try:
            return parse(text)
        except (ValueError, KeyError):
            continue
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()") and len(inner) > 1:
        inner = inner[1:-1]
    elif "," not in inner:
        return text
    return [read_value(part.strip()) for part in _split(inner)]


def _split(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            break
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise OptionError(f"the brackets of {text!r} do not match")
    return parts if parts[-1].strip() else parts[:-1]  # (1,) and an empty list
