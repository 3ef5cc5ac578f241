"""Text as it may be shown on a terminal or in a log: without secrets and without control characters."""

import re
import sys

from pipeline.redaction import redact

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]"
)
"""What moves the cursor, colours, turns the direction of text, or is no text. Tab and newline stay."""


def printable(text: str) -> str:
    """Return text with its secrets masked and its control characters spelled out, ESC as ``\\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), redact(text))


def say(text: str, error: bool = False) -> None:
    """Print one text that may come from outside.

    Args:
        text: what to print.
        error: on stderr.
    """
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)
