"""``biaswise study calibrate``: how often verdicts are right, on simulated studies whose truth is known."""

import time
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments.calibration.design_efficiency import by_size, design_efficiency
from experiments.calibration.error_rates import calibrate_scenario, scenarios
from experiments.calibration.report import Findings, criteria, write_findings
from experiments.storage.study_folder import StudyError

EFFECTS = ((2.0, 2.0), (2.0, 4.0))
"""Sizes of the effects of the comparison with the full grid, noises of one run: the least, and a range."""
CONFIDENCES = (0.95, 0.97)
SIZES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
MOST_SEEDS = 4


def calibrate(arguments: Namespace) -> int:
    """Judge the studies, write tables and plots, print the targets; 1 if one is missed."""
    if arguments.studies < 1:
        raise StudyError(f"--studies {arguments.studies}: expected 1 or more")
    begun, console = time.monotonic(), Console()
    planted = scenarios()
    total = arguments.studies * (len(planted) + len(EFFECTS) * len(CONFIDENCES) + len(SIZES))
    with Progress(console=console) as progress:
        task = progress.add_task("simulated studies", total=total)

        def tick() -> None:
            progress.advance(task)
            done = int(progress.tasks[task].completed)
            if not console.is_terminal and done % max(total // 20, 1) == 0:  # a log has no bar
                console.print(f"{done} of {total} simulated studies", highlight=False)

        tallies = [(scenario, calibrate_scenario(scenario, arguments.studies, tick)) for scenario in planted]
        agreements = [
            found
            for effects in EFFECTS
            for confidence in CONFIDENCES
            for found in design_efficiency(effects, confidence, arguments.studies, tick)
        ]
        sizes = list(by_size(SIZES, MOST_SEEDS, arguments.studies, tick))
    seconds = time.monotonic() - begun
    findings = Findings(arguments.studies, tuple(tallies), tuple(agreements), tuple(sizes), seconds)
    written = write_findings(findings, Path(arguments.out))
    table = Table("target", "asked", "found", "", box=None)
    for line in criteria(findings):
        table.add_row(line.what, line.asked, line.found, "met" if line.met else "missed")
    console.print(table)
    console.print(f"{written} ({seconds:.0f} s)", soft_wrap=True, highlight=False)
    return 0 if all(line.met for line in criteria(findings)) else 1
