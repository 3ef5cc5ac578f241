"""``biaswise calibrate``: how often verdicts are right, on simulated studies whose truth is known."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.options import Command, OptionError

if TYPE_CHECKING:
    from experiments.calibration.findings import Findings
    from experiments.terminal import Terminal

EFFECTS = ((2.0, 2.0), (2.0, 4.0))
"""Sizes of the effects in the comparison with the full grid, in standard deviations of the noise: the
smallest effect, and a range."""
CONFIDENCES = (0.95,)
SIZES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
MAX_SEEDS = 4


class Calibrate(Command):
    """Judge simulated studies, write tables and plots, print the targets."""

    name = "calibrate"
    goes_on = False
    help = "judge simulated studies of known truth, and count how often the verdicts are right"
    example = "calibrate --studies 100"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--studies", type=int, default=1000, help="per planted truth (%(default)s)")
        parser.add_argument(
            "--out", default="docs/studies/calibration", help="folder to write to (%(default)s)"
        )

        parser.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a target is missed."""
        from rich.table import Table

        from experiments.calibration.findings import criteria
        from experiments.calibration.report import write_findings
        from experiments.terminal import Terminal

        for option in ("studies", "workers"):
            if getattr(arguments, option) < 1:
                raise OptionError(f"--{option} {getattr(arguments, option)}: expected 1 or more")
        console = Terminal()
        findings = _simulate(arguments.studies, arguments.workers, console)
        written = write_findings(findings, Path(arguments.out))
        table = Table("target", "asked", "found", "", box=None)
        for line in criteria(findings):
            table.add_row(line.what, line.asked, line.found, "met" if line.met else "missed")
        console.print(table)
        console.print(f"{written} ({findings.seconds:.0f} s)", soft_wrap=True, highlight=False)
        return 0 if all(line.met for line in criteria(findings)) else 1


def _simulate(studies: int, workers: int, console: "Terminal") -> "Findings":
    """Judge all simulated studies, with a progress bar; a task is one planted truth, or one comparison."""
    from concurrent.futures import Future, as_completed

    from rich.progress import Progress

    from experiments.calibration.design_efficiency import by_size, design_efficiency
    from experiments.calibration.error_rates import calibrate_scenario
    from experiments.calibration.findings import Findings
    from experiments.calibration.scenarios import scenarios
    from experiments.calibration.simulated_power import compare_power
    from pipeline.processes import process_pool

    begun, planted = time.monotonic(), scenarios()
    with Progress(console=console) as progress, process_pool(workers) as pool:
        truths = [pool.submit(calibrate_scenario, scenario, studies) for scenario in planted]
        compared = [
            pool.submit(design_efficiency, effects, confidence, studies)
            for effects in EFFECTS
            for confidence in CONFIDENCES
        ]
        sized = [pool.submit(by_size, size, MAX_SEEDS, studies) for size in SIZES]
        foretold = pool.submit(compare_power, studies)
        running: list[Future[Any]] = [*truths, *compared, *sized, foretold]
        bar = progress.add_task("planted truths and comparisons", total=len(running))
        for done, _ in enumerate(as_completed(running), 1):
            progress.advance(bar)
            if not console.is_terminal and done % 10 == 0:  # a log shows no bar
                console.print(f"{done} of {len(running)} planted truths and comparisons", highlight=False)
    return Findings(
        studies,
        tuple((scenario, task.result()) for scenario, task in zip(planted, truths, strict=True)),
        tuple(agreement for task in compared for agreement in task.result()),
        tuple(line for task in sized for line in task.result()),
        foretold.result(),
        time.monotonic() - begun,
    )
