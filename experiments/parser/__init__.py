"""The words of the command line; what a command does is in ``experiments.commands``."""

import argparse

from experiments.parser.data import add_data
from experiments.parser.models import add_config, add_operators, add_throughput, add_trial
from experiments.parser.studies import add_cluster, add_demo, add_study, add_view


def build_parser(bench: bool = False) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Args:
        bench: with the options of ``bench``, which are declared beside the benchmark and load torch.
    """
    parser = argparse.ArgumentParser(
        prog="biaswise",
        description="In which layers of a camera-LiDAR detector does bias-aware attention pay off, "
        "and which implementation should compute it there?",
        epilog="example: biaswise demo",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_demo(commands)
    add_data(commands)
    add_operators(commands, bench)
    add_config(commands)
    add_throughput(commands)
    add_trial(commands)
    add_study(commands)
    add_view(commands)
    add_cluster(commands)
    return parser
