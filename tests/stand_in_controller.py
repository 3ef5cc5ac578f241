"""An actor that reserves room as a controller of Ray Train does, which is known by the name of its class."""

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group


class TrainController:
    """What the tests start in the place of Ray Train's controller."""

    def reserve(self, cpus):
        return placement_group([{"CPU": cpus}])


def reserve(cpus: float, kind: type[TrainController] = TrainController) -> tuple[ActorHandle, PlacementGroup]:
    """Start an actor, and let it reserve room for a worker of so many CPUs."""
    actor = ray.remote(num_cpus=0)(kind).remote()
    return actor, ray.get(actor.reserve.remote(cpus))
