"""The designs that the calibration simulates, and their rules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.calibration.truth import MARGIN, POINTS_PER_PERCENT
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Arm, Factor, fraction, full, one_at_a_time

SITES = tuple(f"decoder.{layer}.cross" for layer in range(6))
"""The layers of the published detectors."""


@dataclass(frozen=True)
class Study:
    """A simulated study.

    Attributes:
        name: for tables.
        sites: its factors.
        arms: the arms that run with every seed.
        interim_analyses: numbers of seeds after which it is judged.
        priced_by: where its price comes from; empty: there is none.
        margin: its equivalence margin, noises of one run.
    """

    name: str
    sites: tuple[str, ...]
    arms: tuple[Arm, ...]
    interim_analyses: tuple[int, ...]
    priced_by: str = "stopwatch"
    margin: float = MARGIN

    def rule(self, confidence: float = 0.95, order: Sequence[str] = ()) -> DecisionRule:
        """Return its rule, in noises of one run."""
        return DecisionRule(
            treatments=("window",),
            baseline="none",
            sites=self.sites,
            seeds=tuple(range(self.interim_analyses[-1])),
            interim_analyses=self.interim_analyses,
            arms=self.arms,
            price_points_per_percent=POINTS_PER_PERCENT if self.priced_by else 0.0,
            equivalence_margin=self.margin,
            confidence=confidence,
            order=tuple(order),
            priced_by=self.priced_by or "stopwatch",
        )

    @property
    def most_trials(self) -> int:
        """Trials if it goes to its last look."""
        return len(self.arms) * self.interim_analyses[-1]


_SIX = [Factor(site) for site in SITES]
SMALL = Study("3 layers, 8 arms x 2 seeds", SITES[:3], full(_SIX[:3]).arms, (2,))
LARGE = Study("6 layers, 16 arms x 2 seeds", SITES, fraction(_SIX, 2).arms, (2,))
SINGLE = Study("6 layers, one at a time x 4 seeds", SITES, one_at_a_time(_SIX).arms, (4,))

_FREE = replace(LARGE, priced_by="", margin=1.0)
"""Without a price: what is compared with the full grid are net gains."""
GRID = replace(_FREE, name="full grid", arms=full(_SIX).arms, interim_analyses=(3,))
LEAN = replace(_FREE, name="sequential fraction", interim_analyses=(1, 2))
LONG = replace(LEAN, name="sequential fraction, 6 looks", interim_analyses=(1, 2, 3, 4, 5, 6))
AGAIN = replace(GRID, name="another full grid")
APART = replace(LEAN, name="sequential fraction on trainings of its own")
ORDERED = replace(LEAN, name="screening + sequential fraction")
MISLED = replace(LEAN, name="the same, a screening that errs twice as much")
SCREENED = replace(LEAN, name="screening + confirmation", interim_analyses=(1,))
