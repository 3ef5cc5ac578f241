"""``biaswise operators`` and ``biaswise bench``: what the attention implementations can do, and how fast."""

from argparse import Namespace


def table(arguments: Namespace) -> int:
    """Print the table implementation x bias kind."""
    from operators.matrix import main

    print(main(arguments.device))
    return 0


def bench(arguments: Namespace) -> int:
    """Run the benchmark."""
    from operators.bench.command import main

    return main(arguments)
