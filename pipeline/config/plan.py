"""Which bias kind and which implementation every attention site of the model uses.

A site is named by its path (``aqr.0.cross``, ``decoder.3.self``). A plan maps glob patterns to
choices and is resolved against the real sites before anything is built: a pattern that matches
no site, two patterns on one site, and a site that no pattern names are errors.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from operators.spec import BIAS_KINDS, IMPLEMENTATIONS, WINDOWED_KINDS

_SPELLING = "'bias/impl', 'window:15/impl' (its window in cells) or 'bias/lowrank@rank'"


class PlanError(ValueError):
    """A plan that cannot be read, or does not fit the sites of the model."""


@dataclass(frozen=True)
class Choice:
    """What one site does: a bias kind (or mask) and the implementation that computes it.

    Attributes:
        bias: one of ``operators.spec.BIAS_KINDS``.
        impl: one of ``operators.spec.IMPLEMENTATIONS``.
        rank: only for ``lowrank``: the rank at which the bias is cut off; None is exact.
        window: only for the kinds ``WINDOWED_KINDS``: edge of the window in cells, on the BEV map and on the
            camera maps alike; None takes the two sizes of the config's ``bias_config``.
    """

    bias: str = "none"
    impl: str = "sdpa_math"
    rank: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names, and options that do not go with them."""
        if self.bias not in BIAS_KINDS:
            raise PlanError(f"unknown bias kind {self.bias!r}; expected one of {', '.join(BIAS_KINDS)}")
        if self.impl not in IMPLEMENTATIONS:
            raise PlanError(
                f"unknown implementation {self.impl!r}; expected one of {', '.join(IMPLEMENTATIONS)}"
            )
        if self.rank is not None and (self.impl != "lowrank" or self.rank < 1):
            raise PlanError(
                f"rank={self.rank} with impl={self.impl!r}: a positive rank goes with lowrank alone"
            )
        if self.window is not None and not (
            self.bias in WINDOWED_KINDS and type(self.window) is int and self.window >= 1
        ):
            raise PlanError(
                f"window={self.window!r} with bias={self.bias!r}: a window of 1 cell or more goes with "
                f"{' and '.join(WINDOWED_KINDS)} alone"
            )

    def __str__(self) -> str:
        """Spell the choice as ``bias/impl``, ``window:15/impl`` or ``bias/lowrank@rank``."""
        window = "" if self.window is None else f":{self.window}"
        return f"{self.bias}{window}/{self.impl}" + ("" if self.rank is None else f"@{self.rank}")

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read the spelling of ``str(choice)``."""
        bias, slash, impl = text.partition("/")
        bias, colon, window = bias.partition(":")
        impl, at, rank = impl.partition("@")
        if not slash or (at and not rank.isdecimal()) or (colon and not window.isdecimal()):
            raise PlanError(f"cannot read the choice {text!r}; expected {_SPELLING}")
        return cls(bias, impl, int(rank) if at else None, int(window) if colon else None)


@dataclass(frozen=True)
class Plan:
    """Site pattern -> choice, in the order written.

    Attributes:
        choices: (glob pattern, choice) pairs; ``fnmatch`` rules, case matters.
    """

    choices: tuple[tuple[str, Choice], ...]

    @classmethod
    def of(cls, choices: Mapping[str, Choice | str]) -> "Plan":
        """Build a plan from ``{pattern: Choice or 'bias/impl'}``."""
        pairs = [(p, c if isinstance(c, Choice) else Choice.parse(c)) for p, c in choices.items()]
        return cls(tuple(pairs))

    @classmethod
    def parse(cls, text: str) -> "Plan":
        """Read the spelling of ``str(plan)``: ``pattern=bias/impl;pattern=...``."""
        pairs = []
        for part in filter(None, text.split(";")):
            pattern, equals, choice = part.partition("=")
            if not equals:
                raise PlanError(f"cannot read {part!r} in a plan; expected 'pattern=bias/impl'")
            pairs.append((pattern, Choice.parse(choice)))
        return cls(tuple(pairs))

    def __str__(self) -> str:
        """Spell the plan as ``pattern=bias/impl;...``; ``Plan.parse`` reads it back."""
        return ";".join(f"{pattern}={choice}" for pattern, choice in self.choices)

    @property
    def digest(self) -> str:
        """Eight hex digits that name this plan."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:8]

    def resolve(self, sites: Iterable[str]) -> "Plan":
        """Name every site of the model.

        Args:
            sites: all site paths of the model, in model order.

        Returns:
            A plan with one literal pattern per site, in the order of ``sites``.

        Raises:
            PlanError: a pattern matches nothing, a site is matched twice, or not at all.
        """
        matched = self.matching(sites)
        for site, patterns in matched.items():
            if len(patterns) > 1:
                raise PlanError(
                    f"site {site} is matched by {' and '.join(map(repr, patterns))}; name it once"
                )
            if not patterns:
                raise PlanError(
                    f"site {site} has no choice; add a pattern for it (the baseline too is written out)"
                )
        choices = dict(self.choices)
        return Plan(tuple((site, choices[patterns[0]]) for site, patterns in matched.items()))

    def overlaid(self, sites: Iterable[str]) -> dict[str, Choice]:
        """Choose for the sites that a pattern names, a later pattern before an earlier one.

        Args:
            sites: all site paths of the model.

        Raises:
            PlanError: a pattern matches nothing.
        """
        choices = dict(self.choices)
        return {site: choices[found[-1]] for site, found in self.matching(sites).items() if found}

    def matching(self, sites: Iterable[str]) -> dict[str, list[str]]:
        """List the patterns that match each site, in the order written; PlanError if one matches none."""
        sites = list(sites)
        matched = {site: [p for p, _ in self.choices if fnmatchcase(site, p)] for site in sites}
        for pattern, _ in self.choices:
            if not any(pattern in patterns for patterns in matched.values()):
                raise PlanError(f"pattern {pattern!r} matches no site; the model has {', '.join(sites)}")
        return matched

    def __getitem__(self, site: str) -> Choice:
        """Return the choice of one site of a resolved plan."""
        for pattern, choice in self.choices:
            if pattern == site:
                return choice
        raise PlanError(f"the plan has no site {site!r}; it has {', '.join(p for p, _ in self.choices)}")
