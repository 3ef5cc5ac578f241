"""The verdicts of a study as tracking shows them.

The report hands them over (``experiments.study.final_report``) and keeps them in ``verdicts.json``, which
a later ``biaswise study sync`` reads. Tracking computes no verdict.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.plan import Plan
from pipeline.json_files import JsonError, check_fields, read_json

VERDICTS = "verdicts.json"
"""File of a study that holds its verdicts."""


class VerdictsError(ValueError):
    """A ``verdicts.json`` that cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class SiteVerdict:
    """The verdict about one treatment at one site.

    Attributes:
        site: the attention site.
        treatment: what was compared with the baseline there.
        verdict: ``PAYS``, ``COSTS``, ``NO DIFFERENCE``, ``UNDECIDED``, or ``PAYS where it trains``.
        gain: points of the rule's metric.
        net_gain: gain minus the site's own price, points; None without a price.
        slowdown_percent: growth of the step time by the site alone; None without a price.
        break_even: points that one per cent of slow-down may cost; None if there is no such number.
        price: what the slow-down must earn, points; None without a price.
        gain_low, gain_high, net_gain_low, net_gain_high, price_low, price_high: ends of the intervals.
    """

    site: str
    treatment: str
    verdict: str
    gain: float
    net_gain: float | None
    slowdown_percent: float | None
    break_even: float | None = None
    price: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    net_gain_low: float | None = None
    net_gain_high: float | None = None
    price_low: float | None = None
    price_high: float | None = None

    def metrics(self, term: str) -> dict[str, float | None]:
        """Return ``gain/<term>``, its ends ``gain/<term>_low`` and ``_high`` beside it, and so on."""
        found = {name: getattr(self, name) for name in ("slowdown_percent", "break_even")}
        named = {f"{name}/{term}": value for name, value in found.items()}
        for name in ("gain", "net_gain", "price"):
            named[f"{name}/{term}"] = getattr(self, name)
            named |= {f"{name}/{term}_{end}": getattr(self, f"{name}_{end}") for end in ("low", "high")}
        return named


@dataclass(frozen=True)
class RecommendedPlan:
    """The best guess, predicted and, where its own trials ran, measured.

    Attributes:
        plan: the treatments and where they are, for people: ``window at 0 + 1``.
        utility: expected gain, shrunk, minus price, points.
        predicted_gain: over the baseline everywhere, points.
        predicted_accuracy: the rule's metric, points.
        predicted_samples_per_s: training throughput; None if none was measured.
        measured_gain: measured accuracy of the plan minus that of the baseline everywhere, points; None
            if either did not run.
        measured_accuracy: mean over the plan's own trials, points; None if none ran.
        measured_samples_per_s: likewise.
    """

    plan: str
    utility: float
    predicted_gain: float
    predicted_accuracy: float
    predicted_samples_per_s: float | None = None
    measured_gain: float | None = None
    measured_accuracy: float | None = None
    measured_samples_per_s: float | None = None


@dataclass(frozen=True)
class StudyVerdicts:
    """All verdicts of a study; empty if its rows support none.

    Attributes:
        sites: one verdict per site and treatment.
        recommended: the best guess; None without verdicts, or without a price.
        settled_plan: the plan that certainly nets something, ``no bias`` if certainly none does; empty if
            neither is certain.
        fixed_price_percent: kind of step -> how much any bias slows it down, once per model.
    """

    sites: tuple[SiteVerdict, ...] = ()
    recommended: RecommendedPlan | None = None
    settled_plan: str = ""
    fixed_price_percent: Mapping[str, float] = field(default_factory=dict)

    def tags(self) -> dict[str, str]:
        """Return the tags that people search studies by.

        Returns:
            ``verdict.<site>``, or ``verdict.<site>.<treatment>`` if there are several treatments,
            ``verdict.recommended`` and ``verdict.plan``, the settled plan or ``UNDECIDED``.
        """
        tags = {f"verdict.{self._term(verdict)}": verdict.verdict for verdict in self.sites}
        if self.recommended is not None:
            tags["verdict.recommended"] = self.recommended.plan
            tags["verdict.plan"] = self.settled_plan or "UNDECIDED"
        return tags

    def metrics(self) -> dict[str, float]:
        """Return the numbers that people chart studies by; those that are missing or NaN are left out.

        Returns:
            ``gain/<site>``, ``net_gain/<site>`` and ``price/<site>``, each with the ends of its interval,
            ``<site>_low`` and ``<site>_high``; ``slowdown_percent/<site>`` and ``break_even/<site>``, all
            with the treatment as in ``tags``; the numbers of the recommended plan as
            ``recommended/<field>``; and ``fixed_price_percent/<step>``.
        """
        numbers: dict[str, float | None] = {}
        for verdict in self.sites:
            numbers |= verdict.metrics(self._term(verdict))
        for step, percent in self.fixed_price_percent.items():
            numbers[f"fixed_price_percent/{step}"] = percent
        if self.recommended is not None:
            fields = asdict(self.recommended)
            numbers |= {f"recommended/{name}": value for name, value in fields.items() if name != "plan"}
        return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}

    def slowdown_percent(self, plan: Plan) -> float | None:
        """Return how much slower a training step of a plan is than without any bias.

        The price that all layers share counts once, each layer's own on top; a design of one layer does not
        tell them apart, and its layer's price holds both.

        Returns:
            Per cent; None if no price was measured.
        """
        if not self.fixed_price_percent and all(v.slowdown_percent is None for v in self.sites):
            return None
        chosen = {site: str(choice) for site, choice in plan.choices}  # window:15/rects
        own = [
            verdict.slowdown_percent
            for verdict in self.sites
            if verdict.treatment in (chosen.get(verdict.site), chosen.get(verdict.site, "").partition("/")[0])
        ]
        if not own:
            return 0.0
        shared = self.fixed_price_percent.get("training", 0.0)
        return 100 * (math.prod(1 + (part or 0.0) / 100 for part in (shared, *own)) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "StudyVerdicts":
        """Read what ``to_dict`` returned.

        Raises:
            JsonError: fields are missing or unknown, or values have other types.
        """
        check_fields(cls, plain)
        if missing := {"sites", "recommended"} - plain.keys():
            raise JsonError(f"it lacks the key {min(missing)}")
        best = plain["recommended"]
        return cls(
            tuple(SiteVerdict(**verdict) for verdict in plain["sites"]),
            None if best is None else RecommendedPlan(**best),
            plain.get("settled_plan", ""),
            plain.get("fixed_price_percent", {}),
        )

    def _term(self, verdict: SiteVerdict) -> str:
        several = len({other.treatment for other in self.sites}) > 1
        return f"{verdict.site}.{verdict.treatment}" if several else verdict.site


def read_verdicts(study_folder: Path) -> StudyVerdicts:
    """Read a study's ``verdicts.json``; without one there are no verdicts.

    Raises:
        VerdictsError: it holds something else.
    """
    path = study_folder / VERDICTS
    try:
        return StudyVerdicts.from_dict(read_json(path, dict))
    except FileNotFoundError:
        return StudyVerdicts()
    except JsonError as error:
        raise VerdictsError(
            f"{path}: not the verdicts of a study ({error.reason}); "
            "write it anew with `biaswise study report`"
        ) from error
