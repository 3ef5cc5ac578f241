"""Refuse a trial that no machine of the cluster can ever serve, instead of waiting for ever.

Ray Train asks for a trial's workers as one placement group, and a group that fits nowhere stays pending
without a word. We ask for the same group first and read what the autoscaler thinks of it.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

PATIENCE_S = 60.0
"""The autoscaler looks every 5 s; one that says nothing for this long has died."""

SILENCE_S = 15.0
"""An autoscaler that has never said anything for this long does not exist: the cluster is what it is."""

ROUNDS = 3
"""Rounds of the autoscaler that must agree: it calls infeasible, too, what a node that is just starting or
stopping could not take in this round."""

LOOK_EVERY_S = 1
"""Whole seconds: what Ray waits for a group."""


class CapacityError(RuntimeError):
    """A trial that asks for more than the cluster can have; the message is one sentence."""


@dataclass(frozen=True)
class Request:
    """What a trial's workers ask for.

    Attributes:
        workers: how many.
        each: resource -> amount per worker.
    """

    workers: int
    each: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """Say it in words."""
        amounts = " and ".join(f"{amount:g} {name}" for name, amount in self.each)
        return f"{self.workers} worker{'s' * (self.workers > 1)} with {amounts} each"


def refuse_impossible(requests: Mapping[str, Request]) -> None:
    """Refuse trials that cannot run on the cluster that this process has joined.

    A cluster that is merely full is no reason. Machines that a trial needs may start while we ask.

    Args:
        requests: trial -> what it asks for.

    Raises:
        CapacityError: nothing that is there or may be launched can serve a trial.
    """
    # counted before we ask for anything: what we ask for looks busy, too, for a second
    busy = {request: _busy(request) for request in requests.values()}
    for request in busy:
        missing = request.workers - busy[request]
        if missing <= 0 or not _infeasible(request, missing):
            continue
        name = next(name for name, asked in requests.items() if asked == request)
        machines = [_describe(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        raise CapacityError(
            f"trial {name} asks for {request}, which no machine of the cluster, running or to be launched, "
            f"can serve (running: {'; '.join(sorted(set(machines)))}); lower the trial's workers or threads, "
            "or add a node type to cluster.yaml"
        )


def _busy(request: Request) -> int:
    """Return how many of its workers have room on machines that are up, once others have left them."""
    free = ray._private.state.available_resources_per_node()
    room = 0
    for node in ray.nodes():
        if node["Alive"]:  # one that is so new that its load is not known yet is idle
            has = node["Resources"]
            room += _room(has, request) - _room(free.get(node["NodeID"], has), request)
    return room


def _room(has: Mapping[str, float], request: Request) -> int:
    return min(int(has.get(name, 0) / amount + 1e-6) for name, amount in request.each)


def _infeasible(request: Request, workers: int) -> bool:
    """Ask for this many of its workers and tell whether the autoscaler calls it infeasible."""
    group = placement_group([dict(request.each)] * workers, strategy="PACK")
    try:
        begun, asked_at, patience, against = time.monotonic(), 0, SILENCE_S, set()
        while time.monotonic() < begun + patience:
            if group.wait(LOOK_EVERY_S):
                return False
            status = GetClusterStatusReply()
            status.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status())
            seen, state = status.autoscaling_state, status.cluster_resource_state
            if not asked_at and _names(state.pending_gang_resource_requests, group):
                asked_at = state.cluster_resource_state_version
            if _names(seen.infeasible_gang_resource_requests, group):
                against.add(seen.autoscaler_state_version)
            elif asked_at and seen.last_seen_cluster_resource_state_version >= asked_at:
                return False
            if len(against) == ROUNDS:
                return True
            patience = PATIENCE_S if seen.autoscaler_state_version else SILENCE_S
        return True  # it does not fit, and nobody is there who would launch a machine
    finally:
        remove_placement_group(group)


def _names(requests: Iterable[Any], group: PlacementGroup) -> bool:
    """Tell whether a group is among the autoscaler's gang requests."""
    return any(request.details.startswith(group.id.hex()) for request in requests)


def _describe(has: Mapping[str, float]) -> str:
    return f"{has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU"
