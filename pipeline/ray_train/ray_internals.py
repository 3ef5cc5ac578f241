"""Every private name of Ray that the project uses, in one file.

Ray does not promise to keep these names, so its version is pinned. ``test_ray_internals.py`` has a test for
each name. It fails if a new version of Ray moves the name or changes its meaning. No other file of
``pipeline`` and ``experiments`` uses a private name of Ray.

Functions import what they need. ``biaswise cluster check`` uses this file without Ray Train, and a trial's
controller uses it without torch; importing either takes seconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import ray

if TYPE_CHECKING:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

HEAD_RESOURCE = "node:__internal_head__"
"""Resource that every head node has (amount 1)."""

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable: set to 0 when Ray is imported, it makes a Ray of one node listen on 127.0.0.1 only.

This holds on Linux too, whatever the name says."""


class WorkerGroupWatch(Protocol):
    """What Ray Train's controller calls while a trial's workers run."""

    def started(self, kill_workers: Callable[[], None]) -> None:
        """All workers have started; ``kill_workers`` kills them."""

    def polled(self) -> None:
        """The controller has asked the workers for their status, which it does all the time."""

    def ended(self) -> None:
        """The workers are about to be shut down."""


def worker_group_callback(watch: WorkerGroupWatch) -> Any:
    """Return a callback for ``ray.train.RunConfig(callbacks=[...])`` that calls a watch.

    Ray's public callback, ``ray.train.UserCallback``, hears only of reports and exceptions.

    Args:
        watch: it is pickled and runs in the controller's process.
    """
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Callback(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            def kill_workers() -> None:
                for worker in worker_group.get_workers():
                    ray.kill(worker.actor)

            watch.started(kill_workers)

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            watch.polled()

        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            watch.ended()

    return Callback()


def single_worker_trainer(*arguments: Any, **named: Any) -> "DataParallelTrainer":
    """Return a trainer for one worker, which gets no process group; arguments as for ``TorchTrainer``.

    So no store of torch listens on every network interface. The trainer is of the base class of
    ``TorchTrainer``: the module of that one imports torch, which takes seconds.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer(*arguments, **named)


def leave_out_idle_actors(trainer: "DataParallelTrainer", local: bool) -> None:
    """Make a trainer start without actors that have nothing to do in our trials.

    One hands out Ray Data sets, and our workers load data themselves. Two more have nothing to do on a local
    Ray. One frees the workers' resources after the controller has died: it asks Ray's dashboard whether the
    controller lives, and a local Ray has none. The other passes requests for machines to the autoscaler: a
    local Ray has none, and the controller waits for the actor before it starts workers.

    Args:
        trainer: changed in place, before ``fit``.
        local: the trial runs on a Ray that ``ray_session`` has started.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    idle = (DatasetsCallback, PlacementGroupCleanerCallback) if local else (DatasetsCallback,)
    make_callbacks, run = trainer._create_default_callbacks, trainer._initialize_and_run_controller

    def make_needed_callbacks() -> list[Any]:
        return [callback for callback in make_callbacks() if not isinstance(callback, idle)]

    def run_without_requests(**arguments: Any) -> Any:
        return run(**arguments | {"scaling_policy": _fixed_number_of_workers(trainer.scaling_config)})

    setattr(trainer, "_create_default_callbacks", make_needed_callbacks)  # noqa: B010 (mypy: a method)
    if local:
        setattr(trainer, "_initialize_and_run_controller", run_without_requests)  # noqa: B010


def _fixed_number_of_workers(scaling_config: Any) -> Any:
    """Return Ray Train's policy for a fixed number of workers, without its requests to an autoscaler."""
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

    class WithoutRequests(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            """Request nothing."""

        def _maybe_send_resource_request(self) -> None:
            """Request nothing."""

    return WithoutRequests(scaling_config)


def original_error(error: BaseException) -> BaseException:
    """Return the error that a worker raised, out of what Ray Train wraps it in for its way to the driver."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return error._base_exc if isinstance(error, UserExceptionWithTraceback) else error


def free_resources() -> dict[str, dict[str, float]]:
    """Return, for each node id (hex), resource -> amount that is free now.

    The public ``ray.available_resources`` gives only the sum over all nodes.
    """
    return dict(ray._private.state.available_resources_per_node())


@dataclass(frozen=True)
class Reservation:
    """The placement group of a trial's workers, which a controller of Ray Train has asked for.

    Attributes:
        group: the placement group's id, hex.
        job: id of the Ray job that it belongs to, hex.
        bundles: resource -> amount, for each worker.
        pending: there is no room for it yet.
        abandoned: its controller is dead, so that nobody will use it or give it back.
    """

    group: str
    job: str
    bundles: tuple[dict[str, float], ...]
    pending: bool
    abandoned: bool


def reservations() -> Iterator[Reservation]:
    """Yield what controllers of Ray Train, of whatever job, hold or wait for.

    The public ``ray.util.placement_group_table`` does not say who has asked for a group.
    """
    from ray._private.state import actors, state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group

    for line in state._connect_and_get_accessor().get_placement_group_table():
        group = Group.FromString(line)
        if group.state == Group.REMOVED or not group.creator_actor_id:
            continue
        creator = actors(group.creator_actor_id.hex())
        if creator.get("ActorClassName") == "TrainController":
            yield Reservation(
                group.placement_group_id.hex(),
                group.creator_job_id.hex(),
                tuple(dict(bundle.unit_resources) for bundle in group.bundles),
                group.state == Group.PENDING,
                creator["State"] == "DEAD",
            )


def cluster_status() -> "GetClusterStatusReply":
    """Return what the cluster knows of its resource requests, and what its autoscaler says of them.

    The public commands (`ray status`) print a summary, in which no single request can be found again.
    """
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    status = GetClusterStatusReply()
    status.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status())
    return status


def validate_cluster_config(config: dict[str, Any]) -> None:
    """Validate the contents of a cluster.yaml as `ray up` does, without a cloud.

    Raises:
        jsonschema.ValidationError: it does not have the shape of Ray's schema.
        ValueError, RuntimeError: Ray refuses it. Ray may raise others if a part is missing.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def kuberay_autoscaling_config(cluster: dict[str, Any]) -> dict[str, Any]:
    """Return the autoscaler's configuration as Ray makes it from a KubeRay RayCluster.

    Raises:
        ValueError: Ray refuses it. Ray may raise others if a part is missing.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return dict(_derive_autoscaling_config_from_ray_cr(cluster))
