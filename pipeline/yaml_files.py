"""Parse YAML that may come from anywhere: plain values alone, and no more of them than a reader can use."""

from typing import Any

import yaml

from pipeline.json_files import JsonError

MAX_NODES = 100_000
"""Most values of a file; a reference counts as often as it occurs."""


class Loader(yaml.SafeLoader):
    """The safe loader, with a bound on what ``<<`` merges: maps that merge one another double each time."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge other maps into a map."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_NODES:
            raise JsonError(f"holds more than {MAX_NODES} values, references counted")


def parse_yaml(data: bytes | str) -> dict[str, Any]:
    """Parse YAML whose top level is a mapping.

    Raises:
        JsonError: it is refused.
    """
    try:
        found = yaml.load(data, Loader)  # a safe loader
    except JsonError:
        raise
    except yaml.YAMLError as error:
        raise JsonError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise JsonError("nested too deep") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of dates, bases, keys and tags
        raise JsonError(f"not YAML: {error}") from error
    if not isinstance(found, dict):
        raise JsonError("expected keys and values at its top level")
    if _is_large(found):
        raise JsonError(f"holds more than {MAX_NODES} values, references counted")
    return found


def _is_large(top: Any) -> bool:
    """Return whether there are too many values. A map that holds itself has no end."""
    waiting, number = [top], 0
    while waiting and number <= MAX_NODES:
        number += 1
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return number > MAX_NODES
