"""From rows to the table a linear model can read: one line a trial, one 0/1 column a site.

Every way in which rows can mislead is refused here with one sentence: arms or seeds that are
missing, rows that contradict each other, trials that did not run under equal circumstances.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

from experiments.rule import DecideError, Rule
from pipeline.plan import Plan
from pipeline.rows import Row, select

ALIKE = ("study", "recipe", "commit", "device", "versions")
"""Fields in which the trials that one verdict compares must not differ."""


@dataclass(frozen=True)
class Trial:
    """One trial as the model sees it.

    Attributes:
        name: the trial's name.
        seed: its block.
        treated: per site of the table, whether it has the treatment.
    """

    name: str
    seed: int
    treated: tuple[bool, ...]


@dataclass(frozen=True)
class Table:
    """The design of a study as it really ran.

    Attributes:
        sites: the factors.
        trials: all trials, in the order of arms and seeds.
        diverged: names of the trials whose metric or loss is not finite.
    """

    sites: tuple[str, ...]
    trials: tuple[Trial, ...]
    diverged: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The blocks."""
        return tuple(sorted({trial.seed for trial in self.trials}))

    @property
    def num_arms(self) -> int:
        """How many different plans there are."""
        return len({trial.treated for trial in self.trials})


def tabulate(rows: Sequence[Row], rule: Rule) -> Table:
    """Read the factorial design off the rows, or refuse.

    Args:
        rows: the rows of one study.
        rule: its rule.

    Raises:
        DecideError: no rows, mixed circumstances, an unknown metric, a plan that varies in
            something the rule does not ask about, missing or doubled arms or seeds.
    """
    if not rows:
        raise DecideError("there are no rows; run the study before asking for its verdicts")
    _refuse_mixtures(rows)
    _refuse_unknown_metric(rows, rule)
    plans = _one_plan_each(rows)
    sites = _factors([plan for plan, _ in plans.values()], rule)
    trials = [
        Trial(name, seed, tuple(plan[site].bias == rule.treatment for site in sites))
        for name, (plan, seed) in plans.items()
    ]
    trials.sort(key=lambda trial: (trial.treated, trial.seed))
    values = final_values(rows, rule.metric, rule.condition)
    diverged = tuple(trial.name for trial in trials if _has_diverged(trial.name, values, rows))
    present = [trial for trial in trials if trial.name in values or trial.name in diverged]
    _refuse_gaps(present, sites, rule)
    return Table(sites, tuple(present), diverged)


def final_values(rows: Iterable[Row], metric: str, condition: str) -> dict[str, float]:
    """Return trial -> value of a whole-model metric at the last step it was measured.

    A row that a resumed trial wrote again is taken once; one that came out differently is refused.
    """
    newest: dict[tuple[str, int], Row] = {}
    for row in select(rows, metric=metric, condition=condition, site="", scene=""):
        other = newest.get((row.trial, row.step))
        if other is not None and not _same(other.value, row.value):
            raise DecideError(
                f"trial {row.trial} has two values of {metric} ({condition or 'no condition'}) at step "
                f"{row.step}, {other.value:g} and {row.value:g}; remove the trial's folder and run it again"
            )
        if other is None or row.time >= other.time:
            newest[row.trial, row.step] = row
    last = {trial: max(s for t, s in newest if t == trial) for trial, _ in newest}
    return {trial: newest[trial, step].value for trial, step in last.items()}


def last_steps(rows: Iterable[Row], metric: str, condition: str) -> dict[str, int]:
    """Return trial -> the last step at which a whole-model metric was measured."""
    steps: dict[str, int] = {}
    for row in select(rows, metric=metric, condition=condition, site="", scene=""):
        steps[row.trial] = max(row.step, steps.get(row.trial, 0))
    return steps


def typical_values(rows: Iterable[Row], metric: str) -> dict[str, float]:
    """Return trial -> median of the finite whole-model rows of a metric that is noisy in itself (a time)."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in select(rows, metric=metric, site="", scene=""):
        if math.isfinite(row.value):
            found[row.trial].append(row.value)
    return {trial: median(values) for trial, values in found.items()}


def enumerate_few(names: Iterable[str], most: int = 4) -> str:
    """List names for a sentence, at most a few of them (four fit on a line)."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _refuse_mixtures(rows: Sequence[Row]) -> None:
    for field in ALIKE:
        trials: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            trials[getattr(row, field)].add(row.trial)
        if len(trials) > 1:
            groups = "; ".join(
                f"{v or 'none'}: {enumerate_few(sorted(names), 2)}" for v, names in trials.items()
            )
            raise DecideError(
                f"the trials differ in {field} ({groups}), so a difference between them proves nothing about "
                f"the bias; run them again alike"
            )


def _refuse_unknown_metric(rows: Sequence[Row], rule: Rule) -> None:
    found = list(select(rows, metric=rule.metric, condition=rule.condition, site="", scene=""))
    if not found:
        fractions = select(rows, unit="fraction", site="", scene="")
        known = sorted({f"{row.metric} ({row.condition})" for row in fractions})
        raise DecideError(
            f"no row measures {rule.metric} under the condition {rule.condition!r}; "
            f"measured were {enumerate_few(known, 8) or 'no fractions at all'}"
        )
    if wrong := sorted({row.unit for row in found} - {"fraction"}):
        raise DecideError(f"{rule.metric} is in {', '.join(wrong)}; the rule needs one in the unit fraction")


def _one_plan_each(rows: Sequence[Row]) -> dict[str, tuple[Plan, int]]:
    seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row in rows:
        seen[row.trial].add((row.plan, row.seed))
    for trial, variants in seen.items():
        if len(variants) > 1:
            raise DecideError(f"the rows of trial {trial} name several plans or seeds; expected one of each")
    return {trial: (Plan.parse(plan), seed) for trial, ((plan, seed),) in seen.items()}


def _factors(plans: Sequence[Plan], rule: Rule) -> tuple[str, ...]:
    names = [tuple(site for site, _ in plan.choices) for plan in plans]
    if len(set(names)) > 1:
        raise DecideError("the plans of the trials name different sites; trials of one study share one model")
    choices = {site: {plan[site] for plan in plans} for site in names[0]}
    if unknown := [site for site in rule.sites if site not in choices]:
        raise DecideError(f"the rule names {', '.join(unknown)}; the model has {', '.join(choices)}")
    sites = rule.sites or tuple(s for s, found in choices.items() if len({c.bias for c in found}) > 1)
    if not sites:
        raise DecideError("no site's bias differs between the trials; a verdict needs some without it")
    for site, found in choices.items():
        expected = {rule.treatment, rule.baseline} if site in sites else {next(iter(found)).bias}
        kinds = {choice.bias for choice in found}
        if site not in sites and len(found) > 1:
            raise DecideError(f"site {site} varies ({_spell(found)}) but the rule does not ask about it")
        if kinds - expected or len(found) != len(kinds):
            raise DecideError(
                f"site {site} has the choices {_spell(found)}; the rule compares {rule.treatment} with "
                f"{rule.baseline}, each with one implementation"
            )
    return sites


def _spell(choices: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, choices)))


def _has_diverged(trial: str, values: dict[str, float], rows: Sequence[Row]) -> bool:
    if trial in values:
        return not math.isfinite(values[trial])
    return any(not math.isfinite(row.value) for row in select(rows, trial=trial, metric="loss"))


def _refuse_gaps(trials: Sequence[Trial], sites: tuple[str, ...], rule: Rule) -> None:
    seeds = rule.seeds or tuple(sorted({trial.seed for trial in trials}))
    if strange := [trial.name for trial in trials if trial.seed not in seeds]:
        raise DecideError(f"trial {enumerate_few(strange)} has a seed that the rule does not name ({seeds})")
    names: dict[tuple[tuple[bool, ...], int], list[str]] = defaultdict(list)
    for trial in trials:
        names[trial.treated, trial.seed].append(trial.name)
    if doubled := [" and ".join(group) for group in names.values() if len(group) > 1]:
        raise DecideError(f"{enumerate_few(doubled, 2)} are the same arm and seed; keep one of them")
    cells = list(product(product((False, True), repeat=len(sites)), seeds))
    gaps = [cell for cell in cells if cell not in names]
    missing = [f"{spell_arm(arm, sites, rule)}, seed {seed}" for arm, seed in gaps]
    if missing:
        listed = "; ".join(missing[:3]) + ("; ..." if len(missing) > 3 else "")
        raise DecideError(
            f"{len(missing)} of {len(cells)} trials lack {rule.metric} ({rule.condition}): "
            f"{listed}; finish the study with `biaswise study resume`"
        )


def spell_arm(arm: Sequence[bool], sites: Sequence[str], rule: Rule) -> str:
    """Name an arm by its treated sites: ``window at decoder.0.cross + decoder.2.cross``."""
    treated = [site for site, on in zip(sites, arm, strict=True) if on]
    return f"{rule.treatment} at {' + '.join(treated)}" if treated else f"{rule.baseline} everywhere"


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
