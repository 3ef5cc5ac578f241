"""The report at the end of a study: judged, written, and its verdicts printed."""

from pathlib import Path

from rich.console import Console

from experiments.storage.study_folder import StudyError, settings_of
from pipeline.config.plan import Plan


def show_report(folder: Path, console: Console) -> None:
    """Judge a study, write its report, the recommended plan as a config too, and print the verdicts."""
    from experiments.reporting.report import print_report, write_report

    def config_of(plan: Plan) -> str:
        trials = sorted(folder.glob("trials/*/settings.json"))
        if not trials:
            raise StudyError(f"{folder} has no settings.json that names the model")
        from pipeline.detector.inspection.plan_config import print_config  # imports torch: seconds

        return print_config(settings_of(trials[0].parent).config, plan, folder.resolve())

    print_report(write_report(folder, config_of), console)
