"""The planted truths of the calibration: what holds by the model, and what breaks its assumptions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from experiments.calibration.designs import LARGE, LEAN, LONG, SINGLE, SMALL, Study
from experiments.calibration.truth import MARGIN, Faults, StepTimes, Truth

TWICE = 2.0
"""The net gain that has to be found: twice the noise of one run."""
NOMINAL, ORDINARY, STRESS = "no fault", "ordinary faults", "stress"
"""Kinds of scenarios: the model holds; noise and trials are as real ones are; an assumption is broken."""


@dataclass(frozen=True)
class Scenario:
    """A planted truth.

    Attributes:
        name: for tables, without the study.
        kind: ``NOMINAL``, ``ORDINARY`` or ``STRESS``.
        truth: what is true.
        study: the study that is run.
        screening: correlation of a screening's errors with the study's; None: there is no screening.
    """

    name: str
    kind: str
    truth: Truth
    study: Study
    screening: float | None = None

    @property
    def is_standard(self) -> bool:
        """Whether all targets of standard conditions hold for it."""
        return self.kind in (NOMINAL, ORDINARY)

    @property
    def has_effects(self) -> bool:
        """Whether there is a net gain or loss to find."""
        return any(self.truth.judged.values())

    @property
    def label(self) -> str:
        """Its name with the size of its study."""
        return f"{self.name}, {len(self.study.sites)} layers"


def scenarios() -> tuple[Scenario, ...]:
    """Return all planted truths."""
    both = [scenario for study in (SMALL, LARGE) for scenario in _of(study)]
    return (*both, *_of_three_seeds(), *_of_large_studies())


def _of(study: Study) -> Iterator[Scenario]:
    """Yield the scenarios of a design."""
    none, one = _truths(study)
    yield from (Scenario(name, NOMINAL, truth, study) for name, truth in _nominal(none, one).items())
    yield from (Scenario(name, ORDINARY, truth, study) for name, truth in _ordinary(none, one).items())
    yield from (Scenario(name, STRESS, truth, study) for name, truth in _stress(none, one).items())
    by_trials = replace(study, priced_by="trials")
    for name, times in _of_trials().items():
        kind = ORDINARY if "random" in name else STRESS
        yield Scenario(f"priced by trials, {name}", kind, replace(none, times=times), by_trials)
    # half of the layers have no net gain, half one at the margin; six seeds, so that both can be told
    sites = study.sites
    half = {site: MARGIN * (index % 2) for index, site in enumerate(sites)}
    longer = replace(study, name=study.name.replace("2 seeds", "6 seeds"), interim_analyses=(6,))
    yield Scenario("half the layers at the margin", STRESS, Truth(half), longer)


def _truths(study: Study) -> tuple[Truth, Truth]:
    """Return no effect, and one layer that pays."""
    nothing = dict.fromkeys(study.sites, 0.0)
    return Truth(nothing), Truth({**nothing, study.sites[1]: TWICE})


def _nominal(none: Truth, one: Truth) -> dict[str, Truth]:
    sites = list(none.net)
    pair = {**none.net, sites[0]: 1.5, sites[1]: 1.5}
    return {
        "no effect": none,
        "one layer pays": one,
        "one layer costs": replace(one, net={**none.net, sites[1]: -TWICE}),
        "two opposite layers": replace(one, net={**one.net, sites[2]: -TWICE}),
        "all layers pay": replace(one, net=dict.fromkeys(sites, TWICE)),
        "two layers and their interaction": replace(one, net=pair, pairs={(sites[0], sites[1]): 2.0}),
        "a bias that speeds up, one layer pays": replace(one, times=StepTimes(site=-0.03)),
        "step times vary by 10 %": replace(none, times=StepTimes(step_noise=0.1)),
        "hardly any noise": replace(none, noise=0.01, seed_noise=0.02),
    }


def _ordinary(none: Truth, one: Truth) -> dict[str, Truth]:
    collapsed = {"one": 1, "two": 2, "three": 3}
    return {
        "heavy tails (t3)": replace(none, tails=3.0),
        "heavy tails (t3), one layer pays": replace(one, tails=3.0),
        "long tail below": replace(none, skew=-1),
        "long tail above, one layer pays": replace(one, skew=1),
        "noise x 3 under one bias": replace(none, unequal=3.0),
        "noise x 3 under one bias, one layer pays": replace(one, unequal=3.0),
        "two diverged trials, one layer pays": replace(one, faults=Faults(diverging=2)),
        **{
            f"{word} collapsed, one layer pays": replace(one, faults=Faults(collapsing=count))
            for word, count in collapsed.items()
        },
        "one missing trial, one layer pays": replace(one, faults=Faults(missing=1)),
        "three missing trials, one layer pays": replace(one, faults=Faults(missing=3)),
    }


def _stress(none: Truth, one: Truth) -> dict[str, Truth]:
    first = next(iter(none.net))
    gaining = replace(one, net={**none.net, list(none.net)[1]: 1.5 * TWICE})
    crashing = Faults(crashing=1 / 8, crash_site=first)
    return {
        **{
            f"fixed price {percent} %, one layer gains": replace(
                gaining, times=StepTimes(fixed=percent / 100)
            )
            for percent in (5, 10, 25)
        },
        "seed x site 0.5": replace(none, seed_by_site=0.5),
        "seed x site 1": replace(none, seed_by_site=1.0),
        "seed x site 1, one layer pays": replace(one, seed_by_site=1.0),
        "noise x 3 under one bias, heavy tails": replace(none, unequal=3.0, tails=3.0),
        "a bias that collapses 1 in 8": replace(none, net={**none.net, first: TWICE}, faults=crashing),
        "a bias that collapses 1 in 8 by chance": replace(
            none, net={**none.net, first: TWICE}, faults=replace(crashing, by_chance=True)
        ),
    }


def _of_three_seeds() -> Iterator[Scenario]:
    """Yield what a third seed changes for three layers."""
    none, one = _truths(SMALL)
    longer = replace(SMALL, name=SMALL.name.replace("2 seeds", "3 seeds"), interim_analyses=(3,))
    yield Scenario("three seeds, one layer pays", NOMINAL, one, longer)
    two = replace(one, faults=Faults(collapsing=2))
    yield Scenario("three seeds, two collapsed, one layer pays", ORDINARY, two, longer)
    yield Scenario("three seeds, seed x site 1", STRESS, replace(none, seed_by_site=1.0), longer)


def _of_trials() -> dict[str, StepTimes]:
    """Return what the step times of trials may suffer from; the stopwatch does not see it."""
    return {
        "random slots, one 15 % slower": StepTimes(slot_gap=0.15, slots="random"),
        "drift 3 %": StepTimes(drift=0.03),
        "drift 10 %": StepTimes(drift=0.10),
        "alternating slots, one 15 % slower": StepTimes(slot_gap=0.15),
        "fixed price 10 %": StepTimes(fixed=0.10),
    }


def _of_large_studies() -> Iterator[Scenario]:
    """Yield what only a study of six layers has: scenes, looks, early stopping, a screening."""
    none, one = _truths(LARGE)
    free, free_one = replace(none, times=None), replace(one, times=None)
    yield Scenario("scenes", ORDINARY, replace(none, scenes=150), LARGE)
    yield Scenario("scenes matter much", ORDINARY, replace(none, scenes=150, scene_gain=0.4), LARGE)
    yield Scenario("up to six looks", NOMINAL, free, LONG)
    yield Scenario("every gain at the margin", STRESS, replace(free, net=dict.fromkeys(free.net, 1.0)), LONG)
    stopping = Faults(stopping=True)
    yield Scenario("early stopping", ORDINARY, replace(free, faults=stopping), LEAN)
    yield Scenario("early stopping, one layer pays", ORDINARY, replace(free_one, faults=stopping), LEAN)
    lost = Faults(lost_seed=0)
    yield Scenario("a diverged seed, one layer pays", ORDINARY, replace(free_one, faults=lost), LEAN)
    stopped = Faults(stopped_collapses=1)
    yield Scenario("a collapse is stopped, one layer pays", STRESS, replace(one, faults=stopped), LARGE)
    for correlation in (0.0, 0.5, 1.0):
        name = f"screening, correlation {correlation:g}"
        yield Scenario(name, STRESS if correlation else ORDINARY, none, LARGE, correlation)
    yield Scenario("noise x 3 under one bias, one at a time", STRESS, replace(none, unequal=3.0), SINGLE)
