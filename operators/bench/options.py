"""The options of ``biaswise operators bench`` and of ``python -m operators.bench.command``."""

import argparse

from operators.spec import BIAS_KINDS, IMPLEMENTATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; needs no torch, so that ``--help`` is fast."""
    parser.add_argument(
        "--out", default="runs/bench", help="folder of rows.parquet, table.md and plots (%(default)s)"
    )
    parser.add_argument(
        "--shapes", default="real", help="real, mini, cpu, or names with commas (%(default)s)"
    )
    parser.add_argument("--kinds", default=",".join(BIAS_KINDS), help="bias kinds, with commas (all)")
    parser.add_argument(
        "--impls", default=",".join(IMPLEMENTATIONS), help="implementations, with commas (all)"
    )
    parser.add_argument(
        "--growth", action="store_true", help="also measure how cost grows with keys and queries"
    )
    parser.add_argument(
        "--budget-ms", type=float, default=200.0, help="time per measurement, ms (%(default)s)"
    )
