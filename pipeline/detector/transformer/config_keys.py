"""Values of a model's config that are checked alike in several places."""

from collections.abc import Mapping
from typing import Any


def without_type(cfg: Mapping[str, Any], at: str, *types: str) -> dict[str, Any]:
    """Return a part of the config without its ``type``, which need not be given.

    Args:
        cfg: the part.
        at: where it is in the config.
        types: that it may have.

    Raises:
        ValueError: it has another type.
    """
    given = dict(cfg)
    kind = given.pop("type", types[0])
    if kind not in types:
        raise ValueError(f"{at}: expected type {' or '.join(map(repr, types))}, got {kind!r}")
    return given


def whole_number(at: str, value: Any) -> int:
    """Return a whole number of at least 1.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{at}: expected a whole number of at least 1, got {value!r}")
    return value
