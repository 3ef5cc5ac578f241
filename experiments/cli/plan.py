"""``biaswise plan``: what every attention site of a config does, changed and printed as a config."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from experiments.cli.options import Command, add_config
from pipeline.printable import say


class ShowPlan(Command):
    """Print or write the plan of a config."""

    name = "plan"
    help = "print what every attention site of a config does, changed as asked, as a config"
    example = "plan experiments/configs/cmt_aqr_pillar_mini.py --choice decoder.1.cross=none/sdpa_math"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_config(parser)
        parser.add_argument(
            "--choice",
            action="append",
            default=[],
            metavar="SITE=BIAS/IMPL",
            help="what the sites that a pattern names do instead, such as window/rects, window:15/rects (a "
            "window of 15 cells), window/lowrank@16 (rank 16); may be repeated, the last one counts",
        )
        parser.add_argument(
            "--aqr",
            action="store_true",
            help="give a config of CMT AQR, a bias generator and the window bias in all decoder layers, and "
            "freeze its branches, as the shipped config of CMT-AQR for images of the nearest size does",
        )
        parser.add_argument("--out", help="file to write (the terminal)")

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from experiments.lint.aqr import add_aqr
        from pipeline.config.plan import Plan
        from pipeline.detector.inspection.plan_config import plan_of, print_config
        from pipeline.storage.files import atomic_write

        config = Path(arguments.config).resolve()
        added = add_aqr(config) if arguments.aqr else None
        overrides = added.overrides if added else ()
        choices = ([added.choices] if added else []) + arguments.choice
        head = f"# AQR, windows and frozen parts are those of {added.source}.\n" if added else ""
        plan = plan_of(config, Plan.parse(";".join(choices)), overrides)
        if arguments.out is None:
            say(head + print_config(config, plan, overrides=overrides).rstrip("\n"))
            return 0
        out = Path(arguments.out).resolve()
        text = head + print_config(config, plan, out.parent, overrides)
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, text)
        if head:
            say(head[2:].rstrip("\n"))
        for site, choice in plan.choices:
            say(f"{site}={choice}")
        return 0
