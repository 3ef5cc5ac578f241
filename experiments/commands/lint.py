"""``biaswise lint``: where the bias of a config flows, and where it does not arrive."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console


def lint(arguments: Namespace) -> int:
    """Lint a config, and mend it if asked; 1 if something is wrong (still)."""
    from experiments.lint.check import lint as check
    from experiments.lint.check import removable
    from experiments.lint.fix import remove
    from experiments.lint.show import as_json, print_report
    from experiments.lint.source import read_source

    config = Path(arguments.config)
    report = check(config, arguments.device)
    fixed = []
    if arguments.fix:
        fixed = removable(report, read_source(config.resolve()))
        fixed = [f for f in fixed if arguments.bases or f.place.file == config.resolve()]
        remove(finding.place for finding in fixed)
        report = check(config, arguments.device) if fixed else report
    if arguments.json:
        print(as_json(report, fixed))
    else:
        print_report(report, fixed, Console())
    return 1 if report.wrong else 0
