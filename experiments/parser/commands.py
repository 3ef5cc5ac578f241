"""Its name, its handler, its help and an example."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(commands: Commands, name: str, run: str, text: str, example: str) -> argparse.ArgumentParser:
    """Add a command whose handler is ``module:function`` in ``experiments.commands``."""
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: biaswise {example}"
    )
    parser.set_defaults(run=run)
    return parser


def group(commands: Commands, name: str, text: str) -> Commands:
    """Add a command that has commands of its own."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add mmengine's way to override a config."""
    text = "override config keys, as in mmengine's tools"
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help=text)
