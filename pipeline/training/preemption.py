"""When a trial saves itself because one of its machines was given notice.

At once, because a notice may come late and be all there is; and once more shortly before the end, so that
what was trained in between is not trained again. Then Ray Train starts the workers anew on machines that
stay, and they go on from the newest checkpoint.
"""

from pipeline.runtime.collectives import all_reduce_max
from pipeline.runtime.session import Session

SECOND_CHECKPOINT_S = 15.0
"""Seconds before a machine's end when its trial saves itself for the last time: a full-size checkpoint is
written within 5 s, and several steps are done within as much."""

NONE, NOTICE, LAST_CALL = range(3)


class PreemptionWatch:
    """Watches for a notice of preemption.

    Every rank asks ``should_checkpoint`` after the same steps, and all ranks get the same answer.

    Args:
        session: who tells whether a machine of the trial is about to go.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._saved = NONE

    def should_checkpoint(self) -> bool:
        """Tell whether to write a checkpoint now; a notice says so twice at most.

        The ranks hear of a notice at different moments, so the first that has decides for all. It costs one
        reduction of one number per step, and with one worker nothing.
        """
        left = self._session.seconds_left()
        heard = NONE if left is None else (LAST_CALL if left <= SECOND_CHECKPOINT_S else NOTICE)
        resolved = all_reduce_max(heard, self._session)
        should_checkpoint, self._saved = resolved > self._saved, max(resolved, self._saved)
        return should_checkpoint
