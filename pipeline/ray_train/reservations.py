"""What the workers of trials reserve on a cluster: frees what nobody uses, and tells how long workers wait.

Ray Train reserves a trial's workers as one placement group. Ray 2.60 keeps a group whose controller has died
while its job lives, and for ever if the group was requested while its job was being ended. Each such group
holds its CPUs and GPUs, and the next trial that needs them waits without a word.
"""

import time
from collections.abc import Callable, Iterator

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipeline.ray_train.capacity import Request
from pipeline.ray_train.ray_internals import Reservation, reservations

LOOK_S = 10.0
"""Time between two looks, seconds."""

FIRST_WORD_S = 60.0
"""Workers that wait for less are not worth a word; afterwards there is one whenever the wait has doubled."""


def free_abandoned() -> list[Reservation]:
    """Free what dead controllers of Ray Train hold, and return what the others do; this process uses Ray."""
    kept = []
    for reservation in reservations():
        if reservation.abandoned:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(reservation.group))))
        else:
            kept.append(reservation)
    return kept


class ReservationWatch:
    """Looks after the reservations of the job of this process, every ten seconds.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._waiting_since: float | None = None
        self._next_word_s = FIRST_WORD_S

    def look(self) -> str:
        """Free what is abandoned; return a sentence if workers have long waited for room, else nothing."""
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return ""
        self._looked_at, job = now, ray.get_runtime_context().get_job_id()
        waiting = [each for each in free_abandoned() if each.pending and each.job == job]
        return self._describe(now, waiting[0]) if waiting else self._forget()

    def _forget(self) -> str:
        """Note that no workers wait."""
        self._waiting_since, self._next_word_s = None, FIRST_WORD_S
        return ""

    def _describe(self, now: float, reservation: Reservation) -> str:
        """Return the sentence about workers that wait, if it is time for one."""
        if self._waiting_since is None:
            self._waiting_since = now
        waited_s = now - self._waiting_since
        if waited_s < self._next_word_s:
            return ""
        self._next_word_s *= 2
        request = Request(len(reservation.bundles), tuple(sorted(reservation.bundles[0].items())))
        return (
            f"workers have waited {waited_s:.0f} s for room: they need {request}; free now: "
            f"{', '.join(_free_now(request))}"
        )


def _free_now(request: Request) -> Iterator[str]:
    """Yield for each resource of a request how much of it is free: ``0 of 2 CPU``."""
    free, total = ray.available_resources(), ray.cluster_resources()
    for name, _ in request.each:
        yield f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}"
