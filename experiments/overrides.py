"""``--cfg-options``: overrides of a config on the command line, in the syntax of mmengine."""

import json
from collections.abc import Iterable

WORDS = {"True": True, "False": False, "None": None}
"""Python's words, which people write there and JSON does not know."""


class OverrideError(ValueError):
    """An override that cannot be read."""


def read_overrides(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Read ``key=value`` words: (dotted key, JSON text) pairs, as ``TrialSettings.overrides`` has them.

    Args:
        texts: a value is JSON or a word of ``WORDS``; anything else is a string.

    Raises:
        OverrideError: there is no ``=``, or no key before it.
    """
    return tuple(_read(text) for text in texts)


def _read(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise OverrideError(
            f"--cfg-options {text}: expected KEY=VALUE, such as optim_wrapper.optimizer.lr=1e-4"
        )
    try:
        json.loads(value)
    except json.JSONDecodeError:
        return key, json.dumps(WORDS.get(value, value))
    return key, value
