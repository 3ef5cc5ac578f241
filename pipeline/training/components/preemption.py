"""When a trial saves itself because one of its machines will be taken away.

A notice of preemption makes a trial save itself twice. The first time is at once, because a notice may come
only moments before the machine goes. The second time is shortly before the announced end, so that what was
trained in between is not trained again. Then Ray Train starts the workers on machines that stay, and they
go on from the newest checkpoint.
"""

from pipeline.runtime.collectives import broadcast
from pipeline.runtime.session import Session

SECOND_CHECKPOINT_S = 15.0
"""Seconds before a machine's end at which its trial saves itself for the second time. A full-size checkpoint
is written within 5 s, and a few steps end within another 5 s."""

NONE, NOTICE, LAST_CALL = range(3)

MAX_STEPS_BETWEEN_CHECKS = 10
"""Ten steps of a full-size model last some seconds. A notice comes 30 s (GCP) or 120 s (AWS) ahead."""


class PreemptionWatch:
    """Watches for a notice of preemption.

    Every rank calls ``should_checkpoint`` after every step, and all ranks get the same answer.

    Args:
        session: knows whether a machine of the trial will be taken away.
        log_every: steps after which the ranks exchange numbers anyway. The session is asked as often, and at
            least every ``MAX_STEPS_BETWEEN_CHECKS`` steps.
    """

    def __init__(self, session: Session, log_every: int) -> None:
        self._session = session
        self._every = min(log_every, MAX_STEPS_BETWEEN_CHECKS)
        self._saved = NONE

    def should_checkpoint(self, step: int) -> bool:
        """Return whether a checkpoint is to be written now; for one notice that is true twice at most.

        All ranks hear of the same notice. The clocks of their machines may differ, so rank 0 decides how much
        time is left. Without a notice they need not agree: on a GPU that would let the host wait for all
        steps that it has launched.

        Args:
            step: steps done.
        """
        if step % self._every:
            return False
        left = self._session.seconds_left()
        if left is None:
            return False
        notice = int(broadcast(LAST_CALL if left <= SECOND_CHECKPOINT_S else NOTICE, self._session))
        should_checkpoint, self._saved = notice > self._saved, max(notice, self._saved)
        return should_checkpoint
