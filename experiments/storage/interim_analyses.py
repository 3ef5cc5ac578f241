"""The waves of a sequential study, as ``interim_analyses.json`` keeps them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.storage.study_folder import StudyError, read_json
from pipeline.json_files import JsonError, check_fields


@dataclass(frozen=True)
class InterimAnalysis:
    """One wave of a sequential study, or its end, as ``interim_analyses.json`` holds it."""

    look: int
    state: str
    reason: str
    alpha_spent: float
    trials: tuple[str, ...] = ()


@dataclass(frozen=True)
class InterimAnalyses:
    """The content of ``interim_analyses.json``."""

    waves: tuple[InterimAnalysis, ...]
    ended: InterimAnalysis | None = None


def read_interim_analyses(path: Path) -> dict[str, Any]:
    """Read ``interim_analyses.json``: the fields of ``InterimAnalyses``, plain.

    Raises:
        StudyError: it is missing, or holds something else.
    """
    plain = read_json(path)
    try:
        check_fields(InterimAnalyses, plain)
    except JsonError as error:
        raise StudyError(
            f"{path}: not the waves of a study ({error}); delete it, and a run goes on by the rows"
        ) from error
    return plain
