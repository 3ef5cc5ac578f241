"""The options of every command that runs a study, here or as a job of a cluster, in one list.

Only the folder of the studies differs: ``--runs-dir`` names it here, ``--home`` that of a job.
"""

from argparse import ArgumentParser, Namespace

from experiments.cli.options import add_no_mlflow, add_packing, add_storage
from experiments.cli.study.chosen import add_overrides


def add_run_options(parser: ArgumentParser) -> None:
    """Add the options of ``study run``."""
    add_overrides(parser)
    add_storage(parser)
    add_packing(parser)
    parser.add_argument(
        "--auto-concurrency",
        action="store_true",
        help="measure which packing of trials is the fastest",
    )
    parser.add_argument(
        "--max-trials", type=int, metavar="N", help="most trials that may run, a confirmation included (all)"
    )
    parser.add_argument(
        "--gpu-hours", type=float, metavar="H", help="most GPU hours of all trials (no limit)"
    )
    parser.add_argument(
        "--hang-timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds without a step after which a trial counts as hung and is started again, or 10 times "
        "its longest step if that is more; 0 waits for ever (%(default)s)",
    )
    parser.add_argument(
        "--skip-confirmation", action="store_true", help="do not train the recommended plan with fresh seeds"
    )
    parser.add_argument(
        "--underpowered", action="store_true", help="start a study that can decide nothing at its margin"
    )
    add_no_mlflow(parser)
    parser.add_argument(
        "--no-register",
        action="store_true",
        help="make no registered model in MLflow of the recommended plan's weights and those without a bias",
    )


def run_words(arguments: Namespace) -> list[str]:
    """Return the words of the options of ``add_run_options`` that do not have their defaults.

    Args:
        arguments: of a parser that has these options.
    """
    parser = ArgumentParser()
    add_run_options(parser)
    words = []
    for name, default in vars(parser.parse_args([])).items():
        value = getattr(arguments, name)
        if value != default:
            option = f"--{name.replace('_', '-')}"
            given = value if isinstance(value, list) else [value]
            words += [option] if value is True else [w for one in given for w in (option, str(one))]
    return words
