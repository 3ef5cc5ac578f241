"""Refuses a trial that no machine of the cluster can ever run.

Ray Train asks for a trial's workers as one placement group. A group that fits on no machine stays pending for
ever, without an error. So we ask for the same group first, and read what the autoscaler says of it.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from pipeline.ray_train.ray_internals import cluster_status, free_resources

AUTOSCALER_TIMEOUT_S = 60.0
"""An autoscaler runs every 5 s; one that has been silent for this long has died."""

NO_AUTOSCALER_S = 15.0
"""A cluster whose autoscaler has not run once in this time has none."""

ROUNDS = 3
"""Rounds in which the autoscaler must call a request infeasible.

It does so, too, if a node that is just starting or stopping cannot take the request in this round."""

POLL_S = 1
"""Whole seconds: Ray waits for a group in these."""


class CapacityError(RuntimeError):
    """A trial asks for more than the cluster can have; the message is one sentence."""


@dataclass(frozen=True)
class Request:
    """Resources that a trial's workers ask for.

    Attributes:
        workers: number of workers.
        each: resource -> amount per worker.
    """

    workers: int
    each: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """Return such as ``2 workers with 4 CPU and 1 GPU each``."""
        amounts = " and ".join(f"{amount:g} {name}" for name, amount in self.each)
        return f"{self.workers} worker{'s' * (self.workers > 1)} with {amounts} each"


def refuse_impossible(requests: Mapping[str, Request]) -> None:
    """Refuse trials that cannot run on the cluster that this process has joined.

    A trial that must only wait for other trials is not refused. During the check the cluster may launch
    machines.

    Args:
        requests: trial -> resources that it asks for.

    Raises:
        CapacityError: no machine that runs or may be launched can take a trial.
    """
    # Counted before any request: for a second, what we request looks busy, too.
    busy = {request: _count_busy(request) for request in requests.values()}
    for request in busy:
        missing = request.workers - busy[request]
        if missing <= 0 or not _is_infeasible(request, missing):
            continue
        name = next(name for name, asked in requests.items() if asked == request)
        machines = [_describe(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        raise CapacityError(
            f"trial {name} asks for {request}, which no machine of the cluster, running or to be launched, "
            f"can serve (running: {'; '.join(sorted(set(machines)))}); lower the trial's workers or threads, "
            "or add a node type to cluster.yaml"
        )


def _count_busy(request: Request) -> int:
    """Return for how many of its workers there will be room once other trials have ended."""
    free = free_resources()
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]  # a node is not in `free` until its load is known: it is new, and idle
            room += _room(has, request) - _room(free.get(node["NodeID"], has), request)
    return room


def _room(has: Mapping[str, float], request: Request) -> int:
    return min(int(has.get(name, 0) / amount + 1e-6) for name, amount in request.each)


def _is_infeasible(request: Request, workers: int) -> bool:
    """Request room for this many workers; return True if the cluster can never provide it."""
    group = placement_group([dict(request.each)] * workers, strategy="PACK")
    try:
        started, requested_at, timeout_s, rounds_against = time.monotonic(), 0, NO_AUTOSCALER_S, set()
        while time.monotonic() < started + timeout_s:
            if group.wait(POLL_S):
                return False
            status = cluster_status()
            autoscaler, state = status.autoscaling_state, status.cluster_resource_state
            seen = autoscaler.last_seen_cluster_resource_state_version
            if not requested_at and _names(state.pending_gang_resource_requests, group):
                requested_at = state.cluster_resource_state_version
            if _names(autoscaler.infeasible_gang_resource_requests, group):
                rounds_against.add(seen)  # new each round, unlike the version of the autoscaler's own state
            elif requested_at and seen >= requested_at:
                return False
            if len(rounds_against) == ROUNDS:
                return True
            timeout_s = AUTOSCALER_TIMEOUT_S if autoscaler.autoscaler_state_version else NO_AUTOSCALER_S
        return True  # the workers do not fit on the running machines, and no autoscaler will launch others
    finally:
        remove_placement_group(group)


def _names(requests: Iterable[Any], group: PlacementGroup) -> bool:
    """Return True if a placement group is among the autoscaler's gang requests."""
    return any(request.details.startswith(group.id.hex()) for request in requests)


def _describe(has: Mapping[str, float]) -> str:
    return f"{has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU"
