"""A study in MLflow: a parent run for the study, a child run for each trial.

Rows on disk are the truth and MLflow is a view of them. ``sync`` may be called at any time, any number of
times, and nothing doubles:

- ``StudyRuns`` finds a run before it creates one.
- MLflow's SQL stores keep a point (key, step, time, value) once, however often it is sent.
- One process at a time sends a study.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.redaction import redact
from pipeline.storage.files import LOCKS, file_lock
from pipeline.storage.paths import with_home
from pipeline.tracking.mlflow_server import default_uri, pages
from pipeline.tracking.mlflow_store import STORE_ERRORS, open_store, short_reason
from pipeline.tracking.saved_view import view_link
from pipeline.tracking.study_reader import stored_trials
from pipeline.tracking.study_sender import StudySender
from pipeline.tracking.study_verdicts import StudyVerdicts, read_verdicts


@dataclass(frozen=True)
class SyncReport:
    """What a ``sync`` did.

    Attributes:
        uri: the tracking store or server, without its password.
        trials: trials that were looked at and have rows.
        sent: rows sent by this call.
        unsent: rows of these trials that MLflow still lacks.
        parent: run id of the study; empty if the store could not be reached.
        warning: one sentence on why rows stayed behind; empty if none did.
        link: address of the study's table of trials on the server, or on the pages of `biaswise ui`.
            Empty if the store could not be reached.
    """

    uri: str
    trials: int
    sent: int
    unsent: int
    parent: str = ""
    warning: str = ""
    link: str = ""

    @property
    def table(self) -> str:
        """What leads to the table of trials, and the command that shows it if no server does."""
        served = "" if self.uri.startswith("http") else f", while `{with_home('biaswise ui')}` runs"
        return f"as a table{served}: {self.link}"


def sync(
    study_folder: Path,
    uri: str | None = None,
    trials: Collection[str] | None = None,
    verdicts: StudyVerdicts | None = None,
    progress: Mapping[str, float] | None = None,
) -> SyncReport:
    """Send what MLflow lacks of a study: runs, params, metrics, artifacts, states.

    A store that cannot be reached is a warning in the report, never an exception: rows stay where they
    are and the next ``sync`` sends them.

    Args:
        study_folder: ``runs/<study>``.
        uri: tracking URI; None means ``default_uri``.
        trials: names of the trials that have changed; only their files are read and sent. None means all
            trials and what lies around them: report, verdicts, state. So does a store that does not know
            the study yet.
        verdicts: of the study; None reads its ``verdicts.json``.
        progress: name -> how far the study is now; become metrics ``progress/<name>`` of its run. They are
            not on disk, so they are sent once or never.

    Raises:
        RowsError: a rows file is broken elsewhere than in its last line.
        VerdictsError: ``verdicts.json`` cannot be read.
    """
    uri = uri or default_uri()
    stored = stored_trials(study_folder, trials)
    if not stored:
        warning = f"{study_folder} has no rows yet; nothing was sent" if trials is None else ""
        return SyncReport(redact(uri), 0, 0, 0, warning=warning)
    parent, warning, link = "", "", ""
    try:
        with _exclusive_sender(study_folder), open_store(uri) as client:
            sender = StudySender(client, study_folder)
            parent = "" if trials is None else sender.runs.find_study()
            if parent:
                sender.runs.find_trials(stored)
                sender.send_trials(stored)
            else:
                stored = stored if trials is None else stored_trials(study_folder)
                parent = sender.runs.find_or_create_study(stored)
                sender.send_trials(stored)
                sender.send_study(stored, read_verdicts(study_folder) if verdicts is None else verdicts)
            sender.send_progress(progress or {})
            link = view_link(pages(uri), sender.runs.experiment, stored[0].first.study)
    except STORE_ERRORS as error:
        warning = (
            f"MLflow at {redact(uri)} did not take everything ({short_reason(error)}); the rows are safe in "
            f"{study_folder}, send them later with `biaswise study sync`"
        )
    sent, unsent = sum(t.newly_sent for t in stored), sum(t.count_unsent() for t in stored)
    return SyncReport(redact(uri), len(stored), sent, unsent, parent, warning, link)


@contextmanager
def _exclusive_sender(study_folder: Path) -> Iterator[None]:
    """Wait for another process that sends the same study: two would create its runs twice."""
    with file_lock(study_folder / LOCKS / "mlflow_sync"):
        yield
