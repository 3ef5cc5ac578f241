"""What of a config of mmcv 1.x has no counterpart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.provenance import Key


@dataclass(frozen=True)
class Lost:
    """Something that is not in the new config.

    Attributes:
        key: its place in the old config.
        sentence: what it was, and why it is left out.
        matters: a training differs by it.
        to_do: what the user can do.
    """

    key: Key
    sentence: str
    matters: bool = False
    to_do: str = ""

    @property
    def advice(self) -> str:
        """What the user can do, or that there is nothing to do."""
        if self.to_do:
            return self.to_do
        if self.matters:
            return "a training differs by it; judge whether that matters"
        return "nothing to do: the model and its training are the same without it"


@dataclass
class Ledger:
    """Collects what is lost while a config is migrated."""

    entries: list[Lost] = field(default_factory=list)

    def lose(self, key: Key, sentence: str, matters: bool = False, to_do: str = "") -> None:
        """Add an entry; see ``Lost``."""
        self.entries.append(Lost(key, sentence, matters, to_do))

    def pop(self, node: dict[str, Any], at: Key, reasons: Mapping[str, str]) -> None:
        """Take keys out of a dict, and add an entry for each reason why.

        Args:
            node: changed in place.
            at: its place.
            reasons: key -> why it is left out.
        """
        there = [key for key in reasons if key in node]
        for why in dict.fromkeys(reasons[key] for key in there):
            keys = [key for key in there if reasons[key] == why]
            self.lose((*at, keys[0]), f"{', '.join(keys)} left out: {why}")
        for key in there:
            node.pop(key)
