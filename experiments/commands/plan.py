"""``biaswise plan``: what every attention site of a config does, changed and printed as a config."""

import sys
from argparse import Namespace
from pathlib import Path

from pipeline.config.plan import Plan


def plan(arguments: Namespace) -> int:
    """Print or write the config."""
    from pipeline.detector.inspection.plan_config import plan_of, print_config

    config = Path(arguments.config).resolve()
    found = plan_of(config, Plan.parse(";".join(arguments.set)))
    if arguments.out is None:
        sys.stdout.write(print_config(config, found))
        return 0
    out = Path(arguments.out).resolve()
    text = print_config(config, found, out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    for site, choice in found.choices:
        print(f"{site}={choice}")
    return 0
