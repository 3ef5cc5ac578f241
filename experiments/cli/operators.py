"""``biaswise operators``: what the attention implementations can do, and how fast they are."""

from argparse import ArgumentParser, Namespace

from experiments.cli.options import Command
from operators.bench.options import add_arguments


class ListOperators(Command):
    """Print the table of implementations and bias kinds."""

    name = "list"
    help = "show which implementation takes which bias, and why not"
    example = "operators list --device cpu"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--device", choices=("cpu", "cuda"), help="only this device (both)")

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from operators.matrix import main

        print(main(arguments.device))
        return 0


class BenchOperators(Command):
    """Run the benchmark of the attention implementations."""

    name = "bench"
    goes_on = False
    help = "time the attention implementations at the decoder's shapes"
    example = "operators bench --shapes mini"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_arguments(parser)

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        from operators.bench.command import main

        return main(arguments)
