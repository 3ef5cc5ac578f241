"""What lint reports: findings, where something is wrong, and notes, which are worth knowing."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.provenance import Key, SourcePlace


class LintError(ValueError):
    """A config that cannot be linted or fixed."""


@dataclass(frozen=True)
class Finding:
    """One statement about a config.

    Attributes:
        rule: short name, such as ``dead-flashbias``.
        key: path of the config key that it is about.
        sentence: what is wrong and what follows from it, without the final full stop.
        advice: what the user can do.
        sites: names of the attention sites that it concerns, if any.
        note: it is worth knowing, but nothing is wrong.
        remove: deleting ``key`` solves it.
        place: where the key was written. The rules leave the default; ``lint`` sets it.
    """

    rule: str
    key: Key
    sentence: str
    advice: str
    sites: tuple[str, ...] = ()
    note: bool = False
    remove: bool = False
    place: SourcePlace = field(default_factory=lambda: SourcePlace(Path(), 1, 1))
