"""Whether a study folder holds what its trials wrote, under the recipe they ran for.

What makes verdicts false is refused; what a reader should know is said.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.row_checks import enumerate_few
from experiments.recipes.decision_rule import AnalysisError
from experiments.reporting.wording import listing
from pipeline.metrics.rows import Row, seal_fault

UNSEALED = "line 1 has no seal"
"""What ``seal_fault`` says of a file from before there were seals."""


def refuse_edits(study_folder: Path) -> None:
    """Refuse rows that are not those that the trials wrote.

    Raises:
        DecideError: a row was changed, removed or added, or the end of a file is missing.
    """
    for path in sorted(study_folder.glob("trials/*/rows.jsonl")):
        fault = seal_fault(path, _end_seal(path.parent))
        if fault and fault != UNSEALED:
            raise AnalysisError(
                f"the rows of trial {path.parent.name} are not those that it wrote: {fault}; restore "
                f"{path.name}, or remove the trial's folder and run it again"
            )


def refuse_other_recipe(rows: Sequence[Row], name: str, digest: str) -> None:
    """Refuse rows of another study, or of a recipe or rule that was changed after the first trial.

    Args:
        rows: of the study.
        name: of the study, as ``study.json`` says; empty if it does not.
        digest: of recipe and rule; likewise.

    Raises:
        DecideError: they differ.
    """
    strangers = sorted({row.study for row in rows} - {name}) if name else []
    if strangers:
        raise AnalysisError(
            f"the rows are those of the study {listing(strangers)}, study.json is that of {name}: "
            f"put the trials back into their own folder"
        )
    strange = sorted({row.recipe for row in rows} - {digest})
    if digest and strange:
        raise AnalysisError(
            f"the rows were measured under the recipe {listing(strange)}, study.json says {digest}: "
            f"recipe or rule were changed after the study began"
        )


def about_code(rows: Sequence[Row]) -> tuple[str, ...]:
    """Say which rows come from code that is in no commit."""
    dirty = sorted({row.commit for row in rows if row.commit.endswith("+")})
    return tuple(f"The code had changes that are in no commit ({commit})." for commit in dirty)


def about_seals(study_folder: Path) -> tuple[str, ...]:
    """Say which trials have rows from before there were seals."""
    paths = sorted(study_folder.glob("trials/*/rows.jsonl"))
    bare = [path.parent.name for path in paths if seal_fault(path) == UNSEALED]
    if not bare:
        return ()
    return (f"Rows without seals, in which an edit does not show: {enumerate_few(bare)}.",)


def failures(study_folder: Path) -> tuple[str, ...]:
    """Say which trials failed, and why."""
    said = []
    for path in sorted(study_folder.glob("trials/*/FAILED.json")):
        reason = "FAILED.json cannot be read"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            reason = str(json.loads(path.read_text(encoding="utf-8"))["error"])
        said.append(f"Failed: {path.parent.name}: {reason.rstrip('.')}.")
    return tuple(said)


def _end_seal(trial: Path) -> str:
    """Return the seal of the trial's last row when it ended; empty if it has not, or did before seals."""
    for name in ("DONE.json", "FAILED.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return str(json.loads((trial / name).read_text(encoding="utf-8")).get("seal", ""))
    return ""
