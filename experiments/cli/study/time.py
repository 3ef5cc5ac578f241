"""``biaswise study time``: the stopwatch run of a study."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from experiments.cli.options import Command, OptionError, add_runs_dir
from experiments.cli.study.chosen import add_overrides, add_study, chosen_study


class TimeStudy(Command):
    """Measure what a bias costs: plans switched between the steps of one model."""

    name = "time"
    help = "measure what each layer's bias costs: step times of one model, plans switched between steps"
    example = "study time demo --seconds 90"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_overrides(parser)
        add_runs_dir(parser)
        parser.add_argument(
            "--seconds",
            type=float,
            metavar="S",
            help="time budget, unless enough is known before (the rule's)",
        )
        parser.add_argument(
            "--again", action="store_true", help="start anew; the times so far are kept under another name"
        )

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from experiments.packing.policy import with_packing
        from experiments.storage.study_folder import StudyFolder
        from experiments.study.preflight.checks import check_data
        from experiments.study.preflight.datasets import make_datasets
        from experiments.study.preflight.inputs import digest_inputs
        from experiments.study.price_run import show_prices, time_study
        from experiments.terminal import Terminal

        if arguments.seconds is not None and not arguments.seconds > 0:
            raise OptionError(f"--seconds {arguments.seconds:g}: expected more than 0")
        console, chosen = Terminal(), chosen_study(arguments)
        folder = StudyFolder(Path(arguments.runs_dir).resolve() / chosen.name)
        with folder.lock():
            chosen = folder.claim(with_packing(chosen, folder), digest_inputs(chosen))
            make_datasets(chosen.datasets, console)
            check_data(chosen)
            rows = time_study(chosen, folder, console, arguments.seconds, arguments.again)
        show_prices(rows, chosen, console)
        return 0
