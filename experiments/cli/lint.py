"""``biaswise lint``: where the bias of a config flows, and where it does not arrive."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from experiments.cli.options import Command, add_config


class Lint(Command):
    """Lint a config, and mend it if asked."""

    name = "lint"
    help = "find bias that does not arrive, shapes that disagree and keys that nobody reads in a config"
    example = "lint experiments/configs/cmt_aqr_pillar_mini.py"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_config(parser)
        parser.add_argument(
            "--fix", action="store_true", help="remove dead flags from the file; all else stays"
        )
        parser.add_argument(
            "--out", metavar="FILE", help="with --fix, of a config of mmcv 1.x: write it as one of today"
        )
        parser.add_argument("--bases", action="store_true", help="with --fix: from its _base_ files too")
        parser.add_argument("--json", action="store_true", help="print JSON")
        text = "where the model will train: cuda in bfloat16, cpu in float32 (%(default)s)"
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help=text)

    def run(self, arguments: Namespace) -> int:
        """Return 1 if something is wrong, after the fixes if there were any."""
        from experiments.lint.check import lint
        from experiments.lint.finding import LintError
        from experiments.lint.fix import remove
        from experiments.lint.formatting import as_json, print_report
        from experiments.lint.migration.report import is_previous, write_today
        from experiments.terminal import Terminal

        config = Path(arguments.config)
        report = lint(config, arguments.device)
        fixed = []
        if arguments.out and not arguments.fix:
            raise LintError("--out names the file that --fix writes; give both")
        if arguments.out:
            write_today(config, Path(arguments.out))
            if arguments.json:
                fixed = list(report.findings)
            else:
                print_report(report, [], Terminal())
            report = lint(Path(arguments.out), arguments.device)
        elif arguments.fix and is_previous(report.findings):
            raise LintError(f"{config}: is a config of mmcv 1.x; name the new file: --fix --out NEW.py")
        elif arguments.fix:
            own = config.resolve()
            fixed = [f for f in report.wrong if f.remove and (arguments.bases or f.place.file == own)]
        if fixed and not arguments.out:
            remove(finding.place for finding in fixed)
            report = lint(config, arguments.device)
        if arguments.json:
            print(as_json(report, fixed))
        else:
            print_report(report, fixed, Terminal())
        return 1 if report.wrong else 0
