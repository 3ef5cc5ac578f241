"""``biaswise lint``: where the bias of a config flows, and where it does not arrive."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console


def lint(arguments: Namespace) -> int:
    """Lint a config, and mend it if asked; 1 if something is wrong (still)."""
    from experiments.lint.check import lint as check
    from experiments.lint.fix import remove
    from experiments.lint.formatting import as_json, print_report

    config = Path(arguments.config)
    report = check(config, arguments.device)
    fixed = []
    if arguments.fix:
        own = config.resolve()
        fixed = [f for f in report.wrong if f.remove and (arguments.bases or f.place.file == own)]
    if fixed:
        remove(finding.place for finding in fixed)
        report = check(config, arguments.device)
    if arguments.json:
        print(as_json(report, fixed))
    else:
        print_report(report, fixed, Console())
    return 1 if report.wrong else 0
