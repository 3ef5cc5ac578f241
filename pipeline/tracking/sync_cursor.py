"""How much of a study MLflow has already.

The cursor only saves work. It is keyed by run id. A new database and a deleted run get new ids, so they are
sent everything again; so they are if the cursor is lost or spoilt.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Cursor:
    """What was sent.

    Attributes:
        path: the cursor file.
        study_run: id of the study's run; empty if it was sent to none.
        rows: run id -> number of rows sent.
        artifacts: ``run id/file name`` -> digest of the content sent.
    """

    path: Path
    study_run: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Cursor":
        """Read the cursor file; a lost or spoilt one counts as empty, since sending again does no harm."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, str(plain["study_run"]), dict(plain["rows"]), dict(plain["artifacts"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def save(self) -> None:
        """Write the cursor file in one step."""
        fresh = self.path.with_suffix(".tmp")
        content = {"study_run": self.study_run, "rows": self.rows, "artifacts": self.artifacts}
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.replace(self.path)
