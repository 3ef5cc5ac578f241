"""Private names of Ray: each test fails if a new version of Ray moves a name or changes its meaning."""

import inspect
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import psutil
import pytest
import ray
import ray.train
from ray import cloudpickle
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline.errors import TrialMemoryError
from pipeline.ray_train import ray_internals
from pipeline.ray_train.local_cluster import LOCAL, ray_session
from tests.stand_in_controller import TrainController, reserve

ROOT = Path(__file__).parents[3]
PRIVATE = re.compile(
    r"ray\S*\.(_private|_internal|_raylet|_common)\b|ray\S*\.core\.generated|node:__internal"
)


def test_no_other_file_uses_a_private_name():
    files = [path for folder in ("pipeline", "experiments") for path in (ROOT / folder).rglob("*.py")]
    using = {path.name for path in files if PRIVATE.search(path.read_text())}
    assert using == {"ray_internals.py"}


def test_importing_the_file_imports_neither_ray_train_nor_torch():
    code = "import sys, pipeline.ray_train.ray_internals; print({'torch', 'ray.train'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


class Calls:
    """A watch that keeps its calls."""

    def __init__(self):
        self.calls = []

    def started(self, kill_workers):
        self.calls.append("started")
        self.kill_workers = kill_workers

    def polled(self):
        self.calls.append("polled")

    def ended(self):
        self.calls.append("ended")


def test_worker_group_callback_overrides_hooks_that_ray_calls():
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    callback = ray_internals.worker_group_callback(Calls())
    hooks = [name for name in vars(type(callback)) if not name.startswith("_")]
    assert len(hooks) == 3
    calling = inspect.getsource(inspect.getmodule(WorkerGroup))
    for name in hooks:
        ours, theirs = getattr(type(callback), name), getattr(WorkerGroupCallback, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
        assert f'"{name}"' in calling or f".{name}(" in calling


def test_worker_group_callback_is_taken_by_the_public_run_config_and_can_be_pickled():
    callback = ray_internals.worker_group_callback(Calls())
    config = ray.train.RunConfig(callbacks=[callback])
    made = TorchTrainer(print, run_config=config)._create_default_callbacks()
    assert callback in made
    copy = cloudpickle.loads(cloudpickle.dumps(callback))
    copy.after_worker_group_poll_status(None)
    copy.before_worker_group_shutdown(None)


def test_workers_of_a_group_are_killed_by_their_actors(monkeypatch):
    from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup

    assert "actor" in inspect.signature(Worker).parameters
    assert callable(WorkerGroup.get_workers)
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    watch = Calls()
    group = SimpleNamespace(get_workers=lambda: [SimpleNamespace(actor=1), SimpleNamespace(actor=2)])
    ray_internals.worker_group_callback(watch).after_worker_group_start(group)
    assert (watch.calls, killed) == (["started"], [])
    watch.kill_workers()
    assert killed == [1, 2]


def names(callbacks):
    return {type(callback).__name__ for callback in callbacks}


@pytest.mark.parametrize("local", [True, False])
def test_idle_actors_are_left_out(local):
    all_of_them = names(TorchTrainer(print)._create_default_callbacks())
    trainer = TorchTrainer(print)
    ray_internals.leave_out_idle_actors(trainer, local)
    left_out = {"DatasetsCallback", "PlacementGroupCleanerCallback"} if local else {"DatasetsCallback"}
    assert all_of_them - names(trainer._create_default_callbacks()) == left_out
    assert "self._create_default_callbacks()" in inspect.getsource(TorchTrainer.fit)


def test_a_local_controller_asks_no_autoscaler():
    """It would start an actor of its own for that, and wait for it before it starts workers."""
    trainer, given = TorchTrainer(print, scaling_config=ray.train.ScalingConfig(num_workers=3)), {}
    trainer._initialize_and_run_controller = lambda **arguments: given.update(arguments)
    ray_internals.leave_out_idle_actors(trainer, local=False)
    trainer._initialize_and_run_controller(scaling_policy="theirs", others=True)
    assert given == {"scaling_policy": "theirs", "others": True}
    ray_internals.leave_out_idle_actors(trainer, local=True)
    trainer._initialize_and_run_controller(scaling_policy="theirs", others=True)
    assert given["others"]
    policy = cloudpickle.loads(cloudpickle.dumps(given["scaling_policy"]))
    policy.after_controller_start(SimpleNamespace(run_id="any"))
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3
    assert type(policy.make_decision_for_running_worker_group(None, None)).__name__ == "NoopDecision"
    policy.before_controller_abort()
    assert policy._coordinator_client is None, "nothing was asked"
    fit = inspect.getsource(TorchTrainer.fit)
    assert "self._initialize_and_run_controller(" in fit
    assert "scaling_policy=create_scaling_policy(self.scaling_config)" in fit


def test_the_trainer_of_one_worker_is_torchs_without_a_process_group():
    trainer = ray_internals.single_worker_trainer(print)
    assert type(trainer) in TorchTrainer.__mro__
    assert type(trainer.backend_config) is BackendConfig
    assert trainer.backend_config.backend_cls is Backend


def test_the_error_of_a_worker_is_unwrapped():
    from ray.train.v2._internal.util import construct_user_exception_with_traceback

    error = TrialMemoryError("no room")
    wrapped = construct_user_exception_with_traceback(error)
    assert type(wrapped) is not type(error)
    assert ray_internals.original_error(pickle.loads(pickle.dumps(wrapped))).args == ("no room",)
    assert ray_internals.original_error(error) is error


@pytest.fixture(scope="module")
def session():
    """Ray on this machine, with two CPUs."""
    with ray_session(cpus=2) as resources:
        yield resources


def test_a_local_ray_listens_on_the_loopback_only(session):
    assert os.environ[ray_internals.LOOPBACK_VARIABLE] == LOCAL[ray_internals.LOOPBACK_VARIABLE] == "0"
    assert ray._private.ray_constants.ENABLE_RAY_CLUSTER is False
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}


def test_a_local_ray_starts_no_process_in_advance(session):
    """Ray itself has the names of these settings, and starts nothing before it is asked to."""
    raylet = (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()
    names = [name for name in LOCAL if name.startswith("RAY_") and not name.isupper()]
    assert len(names) == 2
    assert all(name.encode() in raylet for name in names)
    time.sleep(2)
    words = [word for child in psutil.Process().children(recursive=True) for word in child.cmdline()]
    assert any("default_worker.py" in word for word in words), "the raylet knows how to start one"
    assert not [word for word in words if word.endswith("default_worker.py") or "ray::IDLE" in word]


def test_the_head_node_has_its_resource(session):
    assert ray.cluster_resources()[ray_internals.HEAD_RESOURCE] == 1


def test_free_resources_are_what_no_task_or_group_holds(session):
    (node,) = ray.nodes()
    group = placement_group([{"CPU": 1}])
    assert group.wait(60)
    free = ray_internals.free_resources()
    assert free.keys() == {node["NodeID"]}
    assert free[node["NodeID"]]["CPU"] == 1
    remove_placement_group(group)


def test_the_cluster_status_has_the_fields_that_capacity_reads(session):
    status = ray_internals.cluster_status()
    state = {field.name for field in status.cluster_resource_state.DESCRIPTOR.fields}
    assert {"pending_gang_resource_requests", "cluster_resource_state_version"} <= state
    autoscaler = {field.name for field in status.autoscaling_state.DESCRIPTOR.fields}
    assert {
        "infeasible_gang_resource_requests",
        "autoscaler_state_version",
        "last_seen_cluster_resource_state_version",
    } <= autoscaler
    assert status.autoscaling_state.autoscaler_state_version == 0, "a local Ray has no autoscaler"
    assert status.cluster_resource_state.cluster_resource_state_version > 0


def test_a_pending_group_is_in_the_cluster_status_by_its_id(session):
    group = placement_group([{"CPU": 64}])
    try:
        assert not group.wait(2)
        pending = ray_internals.cluster_status().cluster_resource_state.pending_gang_resource_requests
        assert [request.details.startswith(group.id.hex()) for request in pending] == [True]
    finally:
        remove_placement_group(group)


class OtherActor(TrainController):
    """An actor that is none."""


def test_reservations_are_the_groups_that_controllers_have_requested(session):
    from ray.train.v2._internal.execution.controller import TrainController as Theirs

    assert Theirs.__name__ == TrainController.__name__
    (controller, fits), (other, others) = reserve(1), reserve(1, OtherActor)
    does_not = ray.get(controller.reserve.remote(64))
    groups = [fits, does_not, others, placement_group([{"CPU": 0.5}])]
    assert fits.wait(60)
    job = ray.get_runtime_context().get_job_id()
    found = {each.group: each for each in ray_internals.reservations()}
    assert found == {
        group.id.hex(): ray_internals.Reservation(group.id.hex(), job, ({"CPU": cpus},), pending, False)
        for group, cpus, pending in ((fits, 1.0, False), (does_not, 64.0, True))
    }
    ray.kill(controller)
    ray.kill(other)
    assert {each.group: each.abandoned for each in ray_internals.reservations()} == dict.fromkeys(found, True)
    for group in groups:
        remove_placement_group(group)
    assert list(ray_internals.reservations()) == []


CLUSTER = {
    "cluster_name": "any",
    "max_workers": 1,
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": []},
    "auth": {"ssh_user": "any"},
}


def test_a_cluster_config_is_validated():
    ray_internals.validate_cluster_config(dict(CLUSTER))
    with pytest.raises(jsonschema.ValidationError, match="max_wrkers"):
        ray_internals.validate_cluster_config({**CLUSTER, "max_wrkers": 1})


def test_the_autoscalers_config_is_derived_from_a_ray_cluster():
    container = {"name": "ray", "resources": {"limits": {"cpu": "2", "memory": "4Gi"}}}
    pod = {"spec": {"containers": [container]}}
    group = {"rayStartParams": {}, "template": pod}
    workers = {**group, "groupName": "gpu", "minReplicas": 0, "maxReplicas": 3, "replicas": 0}
    cluster = {
        "metadata": {"name": "any", "namespace": "default"},
        "spec": {"headGroupSpec": group, "workerGroupSpecs": [workers]},
    }
    config = ray_internals.kuberay_autoscaling_config(cluster)
    assert config["available_node_types"]["gpu"]["max_workers"] == 3
    assert config["available_node_types"]["gpu"]["resources"]["CPU"] == 2
