"""What is true of a simulated study: gains, prices, noise, and the faults that real studies have.

The unit is the noise of one training: the standard deviation of trials of one arm within a seed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

COLLAPSE = 20.0
"""What a training that collapses without a NaN loses: a detector that finds little."""
STOPPED_SHARE = 0.25
"""Share of a seed's trials that early stopping ends."""
EARLY_CORRELATION = 0.8
"""Correlation of a run's noise at the early step with its noise at the end."""
POINTS_PER_PERCENT = 1 / 3
"""What one per cent of a step must earn: 0.1 points, where a trial's noise is 0.3 points."""
MARGIN = 5 / 3
"""The equivalence margin: 0.5 points, where a trial's noise is 0.3 points."""


@dataclass(frozen=True)
class StepTimes:
    """The truth about step times, as growth of their logarithm unless named otherwise.

    Attributes:
        site: what every biased site adds.
        fixed: what any bias adds, once.
        step_noise: standard deviation of one step that the stopwatch times.
        rounds: rounds of the stopwatch.
        trial_noise: standard deviation of the step time of one trial.
        drift: by how much the machine slows down from the first trial to the last.
        slot_gap: by how much the second of two slots is slower.
        slots: how trials get slots: ``alternating`` or ``random``.
    """

    site: float = 0.02
    fixed: float = 0.0
    step_noise: float = 0.02
    rounds: int = 15
    trial_noise: float = 0.02
    drift: float = 0.0
    slot_gap: float = 0.0
    slots: str = "alternating"


@dataclass(frozen=True)
class Faults:
    """Trials that do not end as they should.

    Attributes:
        diverging: trials of each study that end without a number.
        lost_seed: seed of which all trials end without a number.
        collapsing: trials of each study that end ``COLLAPSE`` lower.
        crashing: share of the trainings with a bias at ``crash_site`` that collapse.
        crash_site: that site.
        by_chance: whether each of these trainings collapses with that chance; else exactly that share does.
        stopping: whether the worst trials of every seed are stopped early.
        stopped_collapses: collapses in later waves, each stopped early.
        missing: trials of each study that never ran.
    """

    diverging: int = 0
    lost_seed: int | None = None
    collapsing: int = 0
    crashing: float = 0.0
    crash_site: str = ""
    by_chance: bool = False
    stopping: bool = False
    stopped_collapses: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Truth:
    """A planted truth.

    Attributes:
        net: site -> true net gain where trainings end as they should, averaged over what the other sites
            have: its gain minus its own price.
        pairs: (site, site) -> true interaction.
        noise: standard deviation of one training.
        seed_noise: standard deviation of a seed's own level, the same for all arms.
        seed_by_site: standard deviation of a site's gain from seed to seed.
        tails: degrees of freedom of Student's noise (scaled to the same standard deviation); infinity is
            normal noise.
        skew: -1 for exponential noise with its tail below, 1 with its tail above, 0 for none.
        unequal: factor of the noise of trials with a bias at the first site.
        scenes: validation scenes that are resampled; 0: none.
        per_scene: share of a run's variance that differs from scene to scene.
        scene_gain: standard deviation of a site's mean gain over so many scenes, from one set of scenes to
            another.
        times: prices and step times; None: the rule has no price.
        faults: what goes wrong.
    """

    net: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    noise: float = 1.0
    seed_noise: float = 2.0
    seed_by_site: float = 0.0
    tails: float = math.inf
    skew: int = 0
    unequal: float = 1.0
    scenes: int = 0
    per_scene: float = 0.3
    scene_gain: float = 0.16
    times: StepTimes | None = field(default_factory=StepTimes)
    faults: Faults = field(default_factory=Faults)

    @property
    def site_price(self) -> float:
        """What a biased site must earn."""
        return 0.0 if self.times is None else 100 * POINTS_PER_PERCENT * math.expm1(self.times.site)

    @property
    def gains(self) -> dict[str, float]:
        """Site -> true gain before its price, where trainings end as they should."""
        return {site: net + self.site_price for site, net in self.net.items()}

    @property
    def judged(self) -> dict[str, float]:
        """Site -> true net gain with the trainings that its bias makes collapse: what a verdict claims."""
        lost = {self.faults.crash_site: self.faults.crashing * COLLAPSE}
        return {site: net - lost.get(site, 0.0) for site, net in self.net.items()}

    def plan_gain(self, biased: frozenset[str]) -> float:
        """Return the true gain of a plan over no bias anywhere, before its price."""
        on = {site: float(site in biased) for site in self.net}
        lost = self.faults.crashing * COLLAPSE * (self.faults.crash_site in biased)
        pairs = sum(gain * ((on[a] - 0.5) * (on[b] - 0.5) - 0.25) for (a, b), gain in self.pairs.items())
        return sum(gain * on[site] for site, gain in self.gains.items()) + pairs - lost

    def plan_net(self, biased: frozenset[str]) -> float:
        """Return the true net gain of a plan over no bias anywhere, the fixed price taken off."""
        if not biased:
            return 0.0
        growth = 0.0 if self.times is None else self.times.fixed + self.times.site * len(biased)
        return self.plan_gain(biased) - 100 * POINTS_PER_PERCENT * math.expm1(growth)
