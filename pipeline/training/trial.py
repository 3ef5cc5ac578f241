"""One trial from settings to rows: build, train or resume, evaluate, time, profile.

It uses neither Ray nor MLflow: a ``Session`` stands for where it runs, and numbers go to ``rows.jsonl`` in
the trial's folder. The training loop is that of a cohort of one (``pipeline.training.cohort``).
"""

from pipeline.config.early_stopping import EarlyStopping
from pipeline.config.settings import TrialSettings
from pipeline.runtime.session import Session
from pipeline.training.cohort import Arm, train_cohort


def run_trial(settings: TrialSettings, session: Session, early_stopping: EarlyStopping | None = None) -> None:
    """Run a trial to its end, or continue from its newest checkpoint.

    Rows go to ``session.folder / "rows.jsonl"``, detections to ``predictions``, the trained weights to
    ``weights.safetensors``. The same settings give the same rows, bit for bit, on a CPU.

    Args:
        settings: all that decides what the trial does.
        session: where it runs; every rank calls this with the same settings.
        early_stopping: where it is measured before its end, and may be stopped; None: nowhere.

    Raises:
        TrialError, DataError, PlanError, CheckpointError: before training, if the settings cannot be met.
        DivergedError: in training, if the loss is not finite.
        TrialError: memory or disk run out; or another process runs this very trial.
    """
    train_cohort([Arm(settings, session)], early_stopping)
