"""Whether a study folder holds what its trials wrote, under the recipe they ran for.

What makes verdicts false is refused. What a reader should know is a note.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.row_checks import enumerate_few
from experiments.recipes.decision_rule import AnalysisError
from experiments.reporting.wording import listing
from pipeline.metrics.rows import Row, RowsDigest, is_unchanged


def refuse_edits(study_folder: Path) -> None:
    """Refuse rows that are not those that the trials wrote.

    Raises:
        AnalysisError: the rows of an ended trial were changed, or are missing.
    """
    edited = []
    for end, grown in (("DONE.json", False), ("FAILED.json", True)):  # a failed trial may run again
        for path in sorted(study_folder.glob(f"trials/*/{end}")):
            digest = _digest_in(path)
            if digest is not None and not is_unchanged(path.with_name("rows.jsonl"), digest, grown):
                edited.append(path.parent.name)
    if edited:
        raise AnalysisError(
            f"the rows of trial {enumerate_few(edited)} are not those that it wrote; restore rows.jsonl, or "
            f"remove the trial's folder and run it again"
        )


def refuse_other_recipe(rows: Sequence[Row], name: str, digest: str) -> None:
    """Refuse rows of another study, or of a recipe or rule that was changed after the first trial.

    Args:
        rows: of the study.
        name: of the study, as ``study.json`` says; empty if it does not.
        digest: of recipe and rule; likewise.

    Raises:
        AnalysisError: they differ.
    """
    other_studies = sorted({row.study for row in rows} - {name}) if name else []
    if other_studies:
        raise AnalysisError(
            f"the rows are those of the study {listing(other_studies)}, study.json is that of {name}: "
            f"put the trials back into their own folder"
        )
    other_digests = sorted({row.recipe_digest for row in rows} - {digest})
    if digest and other_digests:
        raise AnalysisError(
            f"the rows were measured under the recipe {listing(other_digests)}, study.json says {digest}: "
            f"recipe or rule were changed after the study began"
        )


def about_code(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a note per commit whose code had further changes."""
    dirty = sorted({row.commit for row in rows if row.commit.endswith("+")})
    return tuple(f"The code had changes that are in no commit ({commit})." for commit in dirty)


def failures(study_folder: Path) -> tuple[str, ...]:
    """Return a note per failed trial with the reason."""
    notes = []
    for path in sorted(study_folder.glob("trials/*/FAILED.json")):
        reason = "FAILED.json cannot be read"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            reason = str(json.loads(path.read_text(encoding="utf-8"))["error"])
        notes.append(f"Failed: {path.parent.name}: {reason.rstrip('.')}.")
    return tuple(notes)


def _digest_in(path: Path) -> RowsDigest | None:
    """Return the digest of its rows that a trial kept at its end; None if it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return RowsDigest(**json.loads(path.read_text(encoding="utf-8"))["rows"])
    return None
