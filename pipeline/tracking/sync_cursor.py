"""How much of a study MLflow has already.

The cursor only saves work. It is keyed by run id. A new database and a deleted run get new ids, so they are
sent everything again; so they are if the cursor is lost or spoilt.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.json_files import JsonError, check_fields, read_json
from pipeline.storage.files import atomic_write


@dataclass
class Cursor:
    """What was sent.

    Attributes:
        path: the cursor file.
        study_run: id of the study's run; empty if it was sent to none.
        bytes: run id, or ``run id/file name`` -> bytes of its lines that were sent; lines are sent in order.
        artifacts: ``run id/file name`` -> digest of the content sent.
    """

    path: Path
    study_run: str = ""
    bytes: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Cursor":
        """Read the cursor file; a lost or spoilt one counts as empty, since sending again does no harm."""
        try:
            plain = read_json(path, dict) | {"path": path}
            check_fields(cls, plain)
            return cls(**plain)
        except (OSError, JsonError):
            return cls(path)

    def save(self) -> None:
        """Write the cursor file in one step."""
        content = {"study_run": self.study_run, "bytes": self.bytes, "artifacts": self.artifacts}
        atomic_write(self.path, content)
