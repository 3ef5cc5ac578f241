"""What the rules for both kinds of cluster file share: how they are run, and what both look for."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def run_rules(rules: Iterable[tuple[str, Iterator[str]]]) -> Iterator[str]:
    """Yield the errors that rules find, and one for each rule that cannot read its part of the file.

    Args:
        rules: pairs of the part of the file, and the errors that a rule finds there.
    """
    for at, errors in rules:
        try:
            yield from errors
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            yield (
                f"{at} cannot be read: {type(error).__name__} {error}; a part is missing or "
                "has the wrong type"
            )


def wrong_version(at: str, image: str) -> Iterator[str]:
    """Yield a sentence if an image of Ray has another version than the pinned one, or no fixed version."""
    from ray import __version__ as ours

    match = re.search(r"rayproject/ray(?:-\w+)?(?::(\S+))?$", image)
    if match and not (match[1] or "").startswith(ours):
        yield f"{at} is {image}; expected rayproject/ray:{ours}-..., the version that the project pins"
