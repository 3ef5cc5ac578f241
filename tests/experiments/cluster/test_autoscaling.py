"""A cluster that grows and shrinks, on one machine: Ray's fake provider starts real nodes, a raylet each."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from rich.console import Console

from experiments.cluster.preemption_watch import Cloud, watch
from experiments.recipes.mini import smoke
from experiments.study.preflight.datasets import make_datasets
from pipeline.ray_train import capacity
from pipeline.ray_train.capacity import CapacityError
from pipeline.ray_train.launch import check_capacity
from pipeline.training.preflight import check
from tests.experiments.cluster.spot import server
from tests.machine import unused_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow(seconds=45)]

PATIENCE_S = 120
HEAD_ID = "f" * 51 + "00000"
"""The id that Ray's fake provider gives to the head."""


def config(gcs: int) -> dict[str, object]:
    """The node types of cluster.yaml in small: a head without CPU, spot preferred to on-demand."""
    lists = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
    gpu = {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{gcs}",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",  # the only name that the provider knows
        "available_node_types": {
            "ray.head.default": {
                "resources": {"CPU": 0, "tune_driver": 2},
                "node_config": {},
                "max_workers": 0,
            },
            "gpu_spot": {**gpu, "priority": 10, "labels": {"market": "spot"}},
            "gpu_on_demand": {**gpu, "priority": 0, "labels": {"market": "on-demand"}},
        },
        **{f"{name}_commands": [] for name in lists},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def cluster(start_head, tmp_path, monkeypatch):
    """Join a cluster that has no worker yet; its head."""
    gcs = unused_port()
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(config(gcs)))
    head = start_head(
        "--num-cpus=0",
        '--resources={"tune_driver": 2}',
        f"--autoscaling-config={path}",
        gcs=gcs,
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_CLOUD_INSTANCE_ID=HEAD_ID,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD_ID,
    )
    for key, value in head.environment.items():
        if key.startswith("RAY_") and "OVERRIDE" not in key and "CLOUD" not in key:
            monkeypatch.setenv(key, value)
    monkeypatch.setenv("RAY_ADDRESS", head.gcs)
    return head


def workers() -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != HEAD_ID]


def wait(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def play() -> None:
    """Run by the test in a process of its own: Ray reads its token and settings once, when it is imported."""
    capacity.AUTOSCALER_TIMEOUT_S = math.inf  # the autoscaler has to say it
    ray.init(log_to_driver=False, logging_level="ERROR")
    assert workers() == []

    # a trial that no node type can serve is refused at once, and nothing is launched for it
    gpu = replace(smoke().trials[0], device="cuda", torch_threads=2)
    make_datasets(smoke().datasets, Console(quiet=True))
    check(gpu, Path("runs"), torch.device("cuda"), here=False)
    for name, settings, says in (
        ("wide", replace(gpu, torch_threads=8), "1 worker with 8 CPU and 1 GPU each"),
        ("many", replace(gpu, num_workers=4), "4 workers with 2 CPU and 1 GPU each"),
    ):
        with pytest.raises(
            CapacityError, match=f"^trial {name} asks for {says}, which no machine of the clu"
        ):
            check_capacity({"fits": gpu, name: settings})
        wait(lambda: workers() == [], "what was only asked about is not kept")

    # two waiting trials: two nodes, of the preferred type
    trials = placement_group([{"CPU": 2, "GPU": 1}] * 2)
    wait(lambda: len(workers()) == 2, "0 -> 2")
    assert trials.wait(PATIENCE_S)
    assert {node["Labels"]["market"] for node in workers()} == {"spot"}
    assert all(node["Resources"]["GPU"] == 1 for node in workers())
    # a cluster that is merely full refuses nobody
    check_capacity({"fits": gpu})
    with pytest.raises(CapacityError, match="4 workers"):
        check_capacity({"four": replace(gpu, num_workers=4)})
    check_capacity({"three": replace(gpu, num_workers=3)})  # two when they are free, and one to be launched

    # the cloud's notice becomes a drain
    notice = Path(os.environ["BIASWISE_HOME"]) / "notice"
    metadata = server("127.0.0.1", 0, notice)
    Thread(target=metadata.serve_forever, daemon=True).start()
    lost = placement_group_table(trials)["bundles_to_node_id"][0]  # an idle one would be gone at once
    notice.write_text(str(time.time() + 25))
    said: list[str] = []
    cloud = Cloud(aws=f"http://127.0.0.1:{metadata.server_port}", gcp="http://127.0.0.1:1")
    assert watch(os.environ["RAY_ADDRESS"], lost, said.append, cloud) == 0, said
    assert said[0] == "spot machine: waiting for its notice"
    assert said[1].startswith("notice: this machine ends in 2")
    metadata.shutdown()
    wait(lambda: lost in ray._private.state.state.get_draining_nodes(), "it drains")
    check_capacity({"three": replace(gpu, num_workers=3)})

    # nothing waits any more: every worker goes
    remove_placement_group(trials)
    wait(lambda: workers() == [], "2 -> 0")
    ray.shutdown()


def test_workers_come_and_go_with_the_trials_that_wait(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("BIASWISE_HOME", str(tmp_path))
    code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy; runpy.run_path({__file__!r})['play']()"
    said = tmp_path / "said"
    with said.open("w") as file:  # no pipe, which a process that outlives `play` would keep open
        done = subprocess.run([sys.executable, "-c", code], stdout=file, stderr=file, timeout=500)
    assert done.returncode == 0, f"{said.read_text()}\n{cluster.last_words()}"


def test_a_machine_that_is_no_spot_machine_is_not_watched():
    said: list[str] = []
    nowhere = Cloud(aws="http://127.0.0.1:1", gcp="http://127.0.0.1:1")
    assert watch("127.0.0.1:1", "", said.append, nowhere) == 0
    assert said == ["not a spot machine: nothing to watch"]
