"""How much of a study MLflow has already.

The cursor only saves work. It is keyed by run id, so that a new database, or a deleted run, which get new
ids, are sent everything again; a cursor that is lost or spoilt means the same."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage.files import atomic_write


@dataclass
class Cursor:
    """What was sent.

    Attributes:
        path: the cursor file.
        rows: run id -> number of rows sent.
        artifacts: ``run id/file name`` -> digest of the content sent.
    """

    path: Path
    rows: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Cursor":
        """Read the cursor file; a lost or spoilt one counts as empty, since sending again does no harm."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, dict(plain["rows"]), dict(plain["artifacts"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def save(self) -> None:
        """Write the cursor file in one step."""
        atomic_write(self.path, {"rows": self.rows, "artifacts": self.artifacts})
