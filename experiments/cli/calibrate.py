"""``biaswise calibrate``: how often verdicts are right, on simulated studies whose truth is known."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.options import Command, OptionError

if TYPE_CHECKING:
    from experiments.calibration.findings import Findings
    from experiments.terminal import Terminal

EFFECTS = ((2.0, 2.0), (2.0, 4.0))
"""Sizes of the effects in the comparison with the full grid, in standard deviations of the noise: the
smallest effect, and a range."""
CONFIDENCES = (0.95, 0.97)
SIZES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
MAX_SEEDS = 4


class Calibrate(Command):
    """Judge simulated studies, write tables and plots, print the targets."""

    name = "calibrate"
    help = "judge simulated studies of known truth, and count how often the verdicts are right"
    example = "calibrate --studies 100"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--studies", type=int, default=1000, help="per planted truth (%(default)s)")
        parser.add_argument(
            "--out", default="docs/studies/calibration", help="folder to write to (%(default)s)"
        )

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a target is missed."""
        from rich.table import Table

        from experiments.calibration.findings import criteria
        from experiments.calibration.report import write_findings
        from experiments.terminal import Terminal

        if arguments.studies < 1:
            raise OptionError(f"--studies {arguments.studies}: expected 1 or more")
        console = Terminal()
        findings = _simulate(arguments.studies, console)
        written = write_findings(findings, Path(arguments.out))
        table = Table("target", "asked", "found", "", box=None)
        for line in criteria(findings):
            table.add_row(line.what, line.asked, line.found, "met" if line.met else "missed")
        console.print(table)
        console.print(f"{written} ({findings.seconds:.0f} s)", soft_wrap=True, highlight=False)
        return 0 if all(line.met for line in criteria(findings)) else 1


def _simulate(studies: int, console: "Terminal") -> "Findings":
    """Judge all simulated studies, with a progress bar."""
    from rich.progress import Progress

    from experiments.calibration.design_efficiency import by_size, design_efficiency
    from experiments.calibration.error_rates import calibrate_scenario, scenarios
    from experiments.calibration.findings import Findings

    begun, planted = time.monotonic(), scenarios()
    total = studies * (len(planted) + len(EFFECTS) * len(CONFIDENCES) + len(SIZES))
    with Progress(console=console) as progress:
        task = progress.add_task("simulated studies", total=total)

        def tick() -> None:
            progress.advance(task)
            done = int(progress.tasks[task].completed)
            if not console.is_terminal and done % max(total // 20, 1) == 0:  # a log shows no bar
                console.print(f"{done} of {total} simulated studies", highlight=False)

        tallies = [(scenario, calibrate_scenario(scenario, studies, tick)) for scenario in planted]
        agreements = [
            agreement
            for effects in EFFECTS
            for confidence in CONFIDENCES
            for agreement in design_efficiency(effects, confidence, studies, tick)
        ]
        sizes = list(by_size(SIZES, MAX_SEEDS, studies, tick))
    seconds = time.monotonic() - begun
    return Findings(studies, tuple(tallies), tuple(agreements), tuple(sizes), seconds)
