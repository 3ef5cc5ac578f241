"""``biaswise study power``: which gain a study finds, before anything runs."""

import math
import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import Command, OptionError, add_runs_dir
from experiments.cli.study.chosen import add_overrides, add_study, chosen_study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from experiments.calibration.planning.power import ErrorSources, Power
    from experiments.calibration.planning.study_size import StudySize
    from experiments.recipes.decision_rule import DecisionRule
    from experiments.recipes.recipe import Recipe
    from experiments.terminal import Terminal

OPTIONS = ("--noise", "--scene-noise", "--price-noise")
POWERS = (0.5, 0.8, 0.9)
TITLE = """Net gain of one layer, points, that is found with 50, 80 and 90 %.
none: how often NO DIFFERENCE is told of a layer without any net gain."""


class ShowPower(Command):
    """Show the smallest gain that a study finds, its trials and its GPU hours."""

    name = "power"
    help = "show which gain a study can find, and what it takes, before anything runs"
    example = "study power demo --noise 0.2"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_overrides(parser)
        add_runs_dir(parser)
        add_noise(parser)
        parser.add_argument(
            "--price-per-gpu-hour",
            type=float,
            metavar="DOLLARS",
            help="what an hour of one GPU costs; then the machines are listed with dollars, too",
        )

    def run(self, arguments: Namespace) -> int:
        """Return 1 if the study cannot decide anything at its margin."""
        from experiments.terminal import Terminal

        price = arguments.price_per_gpu_hour
        if price is not None and not 0 < price < math.inf:
            raise OptionError(f"--price-per-gpu-hour {price:g}: expected dollars, above 0")
        chosen, console = chosen_study(arguments), Terminal()
        decides = show_power(chosen, arguments, console)
        show_machines(chosen, price, console)
        return 0 if decides else 1


def add_noise(parser: ArgumentParser) -> None:
    """Add the options that say how uncertain a study's numbers are."""
    parser.add_argument(
        "--noise", type=float, metavar="POINTS", help="standard deviation of one trial (as the demo's)"
    )
    parser.add_argument(
        "--scene-noise",
        type=float,
        metavar="POINTS",
        help="standard error of a gain because the validation scenes are a sample (0)",
    )
    parser.add_argument(
        "--price-noise",
        type=float,
        metavar="POINTS",
        help="standard error of a layer's price (as the rule asks of the stopwatch)",
    )


def show_power(chosen: "Recipe", arguments: Namespace, console: "Terminal") -> bool:
    """Print what a study can find and what it takes; return whether it can decide anything at its margin.

    Args:
        chosen: the study.
        arguments: with ``noise``, ``scene_noise``, ``price_noise`` and ``runs_dir``.
        console: where it is printed.
    """
    from experiments.calibration.planning.power import Power
    from experiments.calibration.planning.study_size import other_designs, other_seeds, size_of
    from experiments.recipes.cost import takes

    size = size_of(chosen)
    sizes = (size, *other_seeds(size), *other_designs(size))
    studies = [Power(each, _sources(each, arguments)) for each in sizes]
    planned = studies[0]
    assumed = _assumed(planned.sources, size.rule, arguments)
    console.print(f"{chosen.question}\n{assumed}", highlight=False, soft_wrap=True)
    cost = _cost_per_trial(chosen, Path(arguments.runs_dir))
    console.print(_table(studies, cost))
    console.print(f"{cost.source}\nIn all: {takes(chosen)}.", highlight=False, soft_wrap=True)
    console.print(planned.in_words(), highlight=False, soft_wrap=True)
    return planned.can_decide


def show_machines(chosen: "Recipe", per_gpu_hour: float | None, console: "Terminal") -> None:
    """Print what a study takes on machines that one may rent; nothing if its model was not measured on a GPU.

    Args:
        chosen: the study.
        per_gpu_hour: dollars of an hour of one GPU; None: hours alone are printed.
        console: where it is printed.
    """
    from rich.table import Table

    from experiments.calibration.planning.machine_cost import machine_costs
    from experiments.recipes.cost import span

    costs = machine_costs(chosen)
    if not costs and per_gpu_hour:
        console.print(
            "No dollars: the hours on rented machines are known for GPU studies of the full-size models that "
            "were measured (docs/models.md), and this is none.",
            highlight=False,
            soft_wrap=True,
        )
    if not costs:
        return
    ways = ("one at a time", f"in cohorts of {costs[0].arms}")
    table = Table(
        "machine", *(f"{way}, h" for way in ways), box=None, title="Computed:", title_justify="left"
    )
    for way in ways if per_gpu_hour else ():
        table.add_column(f"{way}, $")
    for cost in costs:
        hours = (cost.alone, cost.in_cohorts)
        dollars = [cost.dollars(each, per_gpu_hour) for each in hours] if per_gpu_hour else []
        table.add_row(cost.machine.name, *(span(each) for each in (*hours, *dollars)))
    console.print(table)


@dataclass(frozen=True)
class _Cost:
    """What one trial costs: the amount, its unit, and where it comes from, one sentence."""

    amount: float
    unit: str
    source: str


def refuse_noise(arguments: Namespace) -> None:
    """Refuse what `add_noise` takes and no study has.

    Raises:
        OptionError: the first such option.
    """
    for option, value in zip(OPTIONS, _given(arguments).values(), strict=True):
        if value is not None and not (0 <= value < math.inf):
            raise OptionError(f"{option} {value:g}: expected points, 0 or more")
    if arguments.noise == 0:
        raise OptionError("--noise 0: trainings without noise need no study; expected points above 0")


def _given(arguments: Namespace) -> dict[str, float | None]:
    return {"trial": arguments.noise, "scenes": arguments.scene_noise, "price": arguments.price_noise}


def _sources(size: "StudySize", arguments: Namespace) -> "ErrorSources":
    """Return the noise of a study: as told by the options, else what it has to expect."""
    from experiments.calibration.planning.power import expected_sources

    refuse_noise(arguments)
    told = {name: value for name, value in _given(arguments).items() if value is not None}
    return replace(expected_sources(size), **told)


def _assumed(sources: "ErrorSources", rule: "DecisionRule", arguments: Namespace) -> str:
    """Return what the table assumes of the study as it is, a sentence."""
    measured = " (that of the demo)" if arguments.noise is None else ""
    by = "asked of the stopwatch" if rule.priced_by == "stopwatch" else "by the trials' step times"
    expected = f" ({by})" if arguments.price_noise is None else ""
    return (
        f"Assumed, in points: {sources.trial:g} noise of one trial{measured}, {sources.scenes:g} standard "
        f"error of a gain by the choice of scenes, {sources.price:.2g} of a price{expected}."
    )


def _cost_per_trial(chosen: "Recipe", runs_dir: Path) -> _Cost:
    """Return the mean of the trials that have run, else what is computed, else the steps of one."""
    from experiments.storage.usage import used_by
    from pipeline.storage.trial_status import TrialState, read_status

    folders = [runs_dir / chosen.name / "trials" / name for name in chosen.named_trials()]
    used = [used_by(path) for path in folders if read_status(path).state == TrialState.COMPLETE]
    if used:
        on_gpu = any(one.gpu_hours for one in used)
        total = sum(one.gpu_hours if on_gpu else one.hours for one in used)
        unit = "GPU hours" if on_gpu else "trial hours"
        source = f"{unit[0].upper()}{unit[1:]}: by {len(used)} trials that have run."
        return _Cost(total / len(used), unit, source)
    from experiments.recipes.cost import hours_of_trial

    if (computed := hours_of_trial(chosen)) is not None:
        return _Cost(*computed)
    steps = chosen.trials[0].train.steps
    if steps is None:
        return _Cost(math.nan, "steps", "No trial has run, and the recipe does not say how long one is.")
    config = shlex.quote(chosen.trials[0].config)
    why = (
        "No trial of this study has run, and no config that ships has the branches, sizes and frozen parts "
        f"of {config}, so its hours are not known; `biaswise throughput {config}` measures a step on the "
        "machine that trains. Steps are those of training."
    )
    return _Cost(float(steps), "steps", why)


def _table(studies: "Sequence[Power]", cost: _Cost) -> "Table":
    """Return the sizes, the present one first, with the smallest net gain found, points."""
    from rich.table import Table

    table = Table(box=None, title=TITLE, title_justify="left")
    for head in ("arms", "seeds", "trials", cost.unit, "df", *(f"{p:.0%}" for p in POWERS), "none"):
        words = head == "arms"  # they may take two lines; a number stays whole, however narrow the console
        table.add_column(head, no_wrap=not words, justify="left" if words else "right")
    for index, study in enumerate(studies):
        size = study.size
        spent = (
            f"{cost.amount * size.trials:,.3g}"
            if cost.unit != "steps"
            else f"{cost.amount * size.trials:,.0f}"
        )
        cells = [size.design + ("" if index else ", this study"), str(size.seeds), str(size.trials), spent]
        cells.append(str(size.residual_df))
        if study.is_judged:
            cells += [f"{study.smallest_gain(power):.2f}" for power in POWERS]
            cells.append(f"{100 * study.equivalence():.0f} %")
        else:
            cells += ["-"] * (len(POWERS) + 1)
        table.add_row(*cells)
    return table
