"""Findings, which are wrong, and notes, which are worth knowing."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.provenance import Key, SourcePlace


class LintError(ValueError):
    """A config that cannot be linted or fixed."""


@dataclass(frozen=True)
class Finding:
    """One thing to say about a config.

    Attributes:
        rule: short name, such as ``dead-flashbias``.
        key: what it is about.
        sentence: what is wrong and what follows from it.
        advice: what to do.
        sites: attention sites it concerns, if any.
        note: worth knowing, but nothing is wrong.
        remove: ``key`` may be deleted to mend it.
        place: where the key was written; set when all are known.
    """

    rule: str
    key: Key
    sentence: str
    advice: str
    sites: tuple[str, ...] = ()
    note: bool = False
    remove: bool = False
    place: SourcePlace = field(default_factory=lambda: SourcePlace(Path(), 1, 1))
