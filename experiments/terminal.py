"""The console of all commands: what it prints is text, whatever it holds, and never markup or control codes.

Messages, tables and progress hold names, paths and reasons that come from files. So brackets are printed as
they stand, control characters are spelled out, and secrets are masked. Colours are given as ``style``.
"""

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.printable import printable


class Terminal(Console):
    """A rich console without markup; its arguments are rich's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text as it is shown: rich calls this for all text that it prints, in tables too."""
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})
