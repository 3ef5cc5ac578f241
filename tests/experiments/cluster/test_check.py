"""The cluster files that ship are right, and each way to break them is refused with its sentence."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main
from experiments.cluster.check import ClusterError, check_cluster
from experiments.cluster.kuberay_rules import DRAIN_S
from experiments.cluster.ray_rules import AWS_GPUS, _start
from pipeline.storage.paths import ROOT

FILES = {
    "cluster.yaml": ("FILL-IN", "ami-0123456789abcdef0"),
    "ray-job.yaml": ("FILL-IN", "registry.example.com/me/biaswise:0.1"),
}
SOURCES = ("pyproject.toml", "constraints.txt", "requirements-nodeps.txt", "README.md", "LICENSE")
Config = dict[str, Any]
Break = Callable[[Config], object]


def filled(name: str) -> Config:
    text = (ROOT / name).read_text()
    return copy.deepcopy(yaml.safe_load(text.replace(*FILES[name])))


def write(folder: Path, name: str, config: Config) -> Path:
    for source in (*SOURCES, "operators", "pipeline", "experiments"):
        (folder / source).symlink_to(ROOT / source)
    path = folder / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_lacks_only_what_its_user_knows(name, tmp_path, capsys):
    (found,) = check_cluster(ROOT / name)
    assert found.startswith("still FILL-IN: ")
    assert check_cluster(write(tmp_path, name, filled(name))) == []
    assert main(["cluster", "check", str(ROOT / name)]) == 1
    assert f"{ROOT / name}: still FILL-IN" in capsys.readouterr().out
    assert main(["cluster", "check", str(tmp_path / name)]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def put(*path: Any) -> Break:
    """Return a change that puts the last word at the path before it."""
    *way, key, value = path

    def change(config: Config) -> None:
        for step in way:
            config = config[step]
        config[key] = value

    return change


def drop(*path: Any) -> Break:
    *way, key = path

    def change(config: Config) -> None:
        for step in way:
            config = config[step]
        del config[key]

    return change


def swap(key: str, old: str, new: str) -> Break:
    """Return a change of the text of a list of commands."""

    def change(config: Config) -> None:
        assert any(old in command for command in config[key]), "the test must break something"
        config[key] = [command.replace(old, new) for command in config[key]]

    return change


TYPES, HEAD, SPOT = "available_node_types", "head", "gpu_spot"
HEAD_START, WORKER_START = "head_start_ray_commands", "worker_start_ray_commands"
OPEN = {"IpPermissions": [{"FromPort": 0, "ToPort": 65535, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]}

RAY_UP = {
    # what Ray itself refuses
    "unknown key": (put("max_worker", 8), "top level: Additional properties are not allowed .'max_worker'"),
    "no provider": (drop("provider"), "Ray cannot read it: KeyError .provider"),
    "head of no type": (put("head_node_type", "boss"), "Ray refuses it: `head_node_type` must be one of"),
    "half a GPU": (
        put(TYPES, SPOT, "resources", "GPU", 0.5),
        r"gpu_spot\.resources\.GPU: 0\.5 is not of type",
    ),
    "no resources": (drop(TYPES, SPOT, "resources"), "gpu_spot: 'resources' is a required property"),
    "more at least than at most": (
        put(TYPES, SPOT, "min_workers", 9),
        "Ray refuses it: The specified global",
    ),
    "docker typo": (put("docker", {"images": "x"}), "docker: Additional properties"),
    # what it lets pass
    "key of old": (put("min_workers", 1), "min_workers: not a key of this Ray version, which may ignore it"),
    "cloud's key misspelt": (
        put(TYPES, SPOT, "node_config", "InstanceTyp", "g6e.4xlarge"),
        r"gpu_spot\.node_config\.InstanceTyp: aws knows no such key; did you mean InstanceType\?",
    ),
    "more than all": (put(TYPES, SPOT, "max_workers", 20), "max_workers is 20, the cluster's max_workers 8"),
    "min above max": (put(TYPES, SPOT, "max_workers", -1), "min_workers 0 is above max_workers -1"),
    "bills while idle": (
        put(TYPES, SPOT, "min_workers", 1),
        "min_workers is 1; expected 0: these machines would",
    ),
    "never idle": (put("idle_timeout_minutes", 0), "idle_timeout_minutes is 0; expected 1 to 60"),
    "GPUs it has not": (put(TYPES, SPOT, "resources", "GPU", 8), r"resources\.GPU is 8; g6e\.4xlarge has 1"),
    "CPUs it has not": (
        put(TYPES, SPOT, "resources", "CPU", 64),
        r"resources\.CPU is 64; g6e\.4xlarge has 16",
    ),
    "GPU of a CPU machine": (
        put(TYPES, SPOT, "node_config", "InstanceType", "m7i.4xlarge"),
        r"resources\.GPU is 1; m7i\.4xlarge has none",
    ),
    "no machine": (
        put(TYPES, SPOT, "node_config", "InstanceType", "g6e"),
        r"InstanceType is 'g6e'; expected such as g6e\.4xlarge",
    ),
    "spot not preferred": (
        put(TYPES, SPOT, "priority", 0),
        "gpu_spot.priority is 0, that of gpu_on_demand 0",
    ),
    "spot alone": (drop(TYPES, "gpu_on_demand"), "all GPU workers are spot; a study waits for ever"),
    "nobody listens": (
        swap(WORKER_START, "biaswise cluster watch", "true"),
        "nothing watches for the spot notice",
    ),
    "trials on the head": (
        swap(HEAD_START, "--num-cpus=0", ""),
        "the head would run trials: expected CPU: 0",
    ),
    "head promises CPUs": (put(TYPES, HEAD, "resources", "CPU", 8), "the head would run trials"),
    "no drivers": (
        drop(TYPES, HEAD, "resources", "tune_driver"),
        "trial drivers need the resource tune_driver",
    ),
    "drivers differ": (
        swap(HEAD_START, '"tune_driver": 16', '"tune_driver": 4'),
        "available_node_types.head.resources says 16, --resources in head_start_ray_commands 4",
    ),
    "dashboard for all": (
        swap(HEAD_START, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        r"--dashboard-host=0\.0\.0\.0 opens the job server to the network",
    ),
    "quote without end": (
        swap(HEAD_START, "--num-cpus=0", "--num-cpus='0"),
        "head_start_ray_commands cannot be read: ValueError No closing quotation; ",
    ),
    "rule of ports that is text": (
        put("provider", "security_group", {"IpPermissions": ["ssh"]}),
        r"provider\.security_group cannot be read: AttributeError .*has the wrong type$",
    ),
    "no autoscaler": (
        swap(HEAD_START, "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        "no --autoscaling-config=..., so no worker ever starts",
    ),
    "no token on the head": (
        swap(HEAD_START, "RAY_AUTH_MODE=token", ""),
        "head_start_ray_commands: `ray start` wit",
    ),
    "no token on workers": (
        swap(WORKER_START, "RAY_AUTH_MODE=token", ""),
        "worker_start_ray_commands: `ray start`",
    ),
    "no token file": (drop("file_mounts", "~/.ray/auth_token"), "file_mounts: no ~/.ray/auth_token"),
    "no home": (
        swap(WORKER_START, "BIASWISE_HOME=/srv/biaswise", ""),
        "runs and data would lie on one machine",
    ),
    "two homes": (
        swap(WORKER_START, "BIASWISE_HOME=/srv/biaswise", "BIASWISE_HOME=/mnt"),
        "BIASWISE_HOME differs between head and workers",
    ),
    "a cluster each": (
        swap(WORKER_START, "--address=$RAY_HEAD_IP:6379", "--address=10.0.0.1:6379"),
        r"--address=10\.0\.0\.1:6379; expected \$RAY_HEAD_IP:6379",
    ),
    "head never starts": (put(HEAD_START, ["ray stop"]), "head_start_ray_commands: no `ray start --head`"),
    "worker never starts": (put(WORKER_START, ["ray stop"]), "worker_start_ray_commands: no `ray start`"),
    "MLflow for all": (
        swap(HEAD_START, "--host 127.0.0.1", "--host 0.0.0.0"),
        r"MLflow listens on 0\.0\.0\.0",
    ),
    "MLflow forgets": (
        swap(HEAD_START, "sqlite:////srv/biaswise/mlflow.db", "sqlite:///mlflow.db"),
        "--backend-store-uri is sqlite:///mlflow.db; expected one that lasts",
    ),
    "no MLflow": (swap(HEAD_START, "mlflow server", "true"), "no `mlflow server`, where people look"),
    "not installed": (
        swap("setup_commands", "-e '.[gpu]'", "torch"),
        "nothing installs Biaswise from the checkout",
    ),
    "versions drift": (
        swap("setup_commands", "-c constraints.txt", ""),
        "installed without -c constraints.txt",
    ),
    "open ports": (put("provider", "security_group", OPEN), "ports 0 to 65535 are open to the world"),
    "mount of nothing": (put("file_mounts", "~/x", "nowhere"), r"file_mounts\.~/x: there is no .*/nowhere"),
    "another Ray": (
        put("docker", {"image": "rayproject/ray:latest", "container_name": "ray"}),
        r"docker\.image is rayproject/ray:latest; expected rayproject/ray:2\.",
    ),
    "key in the file": (
        put("provider", "note", "AKIA" + "IOSFODNN7EXAMPLE"),
        r"line \d+ holds an AWS access key; rights come from the instance profile",
    ),
    "token in a command": (
        swap(
            HEAD_START, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=" + "0123456789abcdef" * 2
        ),
        r"line \d+ holds the value of a token or key",
    ),
    "password of a database": (
        swap(HEAD_START, "sqlite:////srv/biaswise/mlflow.db", "postgresql://me:" + "hunter2@db/mlflow"),
        r"line \d+ holds a password in a URI",
    ),
}

CLUSTER = ("spec", "rayClusterSpec")
KUBE_HEAD, GROUP = (*CLUSTER, "headGroupSpec"), (*CLUSTER, "workerGroupSpecs", 0)
POD = (*GROUP, "template", "spec")
RAY_JOB = {
    "no cluster": (drop(*CLUSTER), "Ray cannot read it: KeyError 'rayClusterSpec'"),
    "no CPUs": (
        drop(*POD, "containers", 0, "resources"),
        "Ray refuses it: Autoscaler failed to detect `CPU`",
    ),
    "another kind": (put("kind", "RayService"), "Ray refuses it: kind is RayService; expected RayJob"),
    "another version": (
        put("apiVersion", "ray.io/v1alpha1"),
        "apiVersion is ray.io/v1alpha1; expected ray.io/v1",
    ),
    "job key": (
        put("spec", "entryPoint", "x"),
        r"spec\.entryPoint: KubeRay knows no such key; did you mean entrypoi",
    ),
    "cluster key": (
        put(*CLUSTER, "autoscaler", {}),
        r"spec\.rayClusterSpec\.autoscaler: KubeRay knows no such key",
    ),
    "head key": (put(*KUBE_HEAD, "replicas", 1), r"headGroupSpec\.replicas: KubeRay knows no such key"),
    "group key": (
        put(*GROUP, "minReplica", 0),
        r"workerGroupSpecs\.gpu-spot\.minReplica: .*did you mean minReplicas",
    ),
    "another command": (
        put("spec", "entrypoint", "python x.py"),
        "spec.entrypoint is 'python x.py'; expected such",
    ),
    "stays": (put("spec", "shutdownAfterJobFinishes", False), "would be billed after the study's end"),
    "bad environment": (put("spec", "runtimeEnvYAML", "a: ["), "spec.runtimeEnvYAML: not YAML"),
    "another Ray": (put(*CLUSTER, "rayVersion", "2.50.0"), r"rayVersion is 2\.50\.0; the project pins 2\."),
    "no autoscaling": (put(*CLUSTER, "enableInTreeAutoscaling", False), "no worker would ever start"),
    "old autoscaler": (
        put(*CLUSTER, "autoscalerOptions", "version", "v1"),
        "autoscalerOptions.version is not v2",
    ),
    "no token": (put(*CLUSTER, "authOptions", "mode", "disabled"), "authOptions.mode is not token"),
    "trials on the head": (put(*KUBE_HEAD, "rayStartParams", "num-cpus", "4"), 'num-cpus is 4; expected "0"'),
    "no drivers": (
        put(*KUBE_HEAD, "rayStartParams", "resources", '"{}"'),
        "rayStartParams.resources: trial drivers need the resource tune_driver",
    ),
    "open service": (put(*KUBE_HEAD, "serviceType", "LoadBalancer"), "its service is open to the outside"),
    "bills while idle": (put(*GROUP, "minReplicas", 1), "minReplicas 1, replicas 0; expected 0: billed"),
    "none at most": (put(*GROUP, "maxReplicas", 0), "maxReplicas is 0; expected at least 1"),
    "no GPU": (
        drop(*POD, "containers", 0, "resources", "limits", "nvidia.com/gpu"),
        "no nvidia.com/gpu in the lim",
    ),
    "no time to drain": (
        put(*POD, "terminationGracePeriodSeconds", 30),
        "DRAIN_TIMEOUT_S is 100, termination",
    ),
    "time to drain with a unit": (
        put(*POD, "containers", 0, "env", [{"name": DRAIN_S, "value": "90s"}]),
        rf"workerGroupSpecs\.gpu-spot: {DRAIN_S} is '90s'; expected whole seconds without a unit",
    ),
    "no variables": (
        put(*POD, "containers", 0, "env", None),
        r"workerGroupSpecs\.gpu-spot: BIASWISE_HOME is ''; expected a persistent claim",
    ),
    "no volumes": (put(*POD, "volumes", None), "BIASWISE_HOME is '/srv/bias"),
    "no mounts": (put(*POD, "containers", 0, "volumeMounts", None), "BIASWISE_HOME is '/srv/bias"),
    "variables that are a number": (
        put(*POD, "containers", 0, "env", 3),
        r"workerGroupSpecs\.gpu-spot cannot be read: TypeError .*; a part is missing or has the wrong type",
    ),
    "container without a name": (
        drop(*KUBE_HEAD, "template", "spec", "containers", 1, "name"),
        "headGroupSpec cannot be read: KeyError 'name'; a part is missing",
    ),
    "spot not preferred": (put(*GROUP, "priority", 0), "spot is preferred only if its priority is above"),
    "spot alone": (drop(*CLUSTER, "workerGroupSpecs", 1), "all workers are spot"),
    "runs die with pods": (
        put(*POD, "volumes", [{"name": "home", "emptyDir": {}}]),
        "BIASWISE_HOME is '/srv/bias",
    ),
    "image that moves": (put(*POD, "containers", 0, "image", "me/biaswise:latest"), "expected a fixed tag"),
    "image of another Ray": (
        put(*POD, "containers", 0, "image", "rayproject/ray:2.9.0"),
        r"image is rayproject/ray:2\.9\.0; expected rayproject/ray:2\.",
    ),
    "MLflow for all": (
        put(*KUBE_HEAD, "template", "spec", "containers", 1, "command", 3, "0.0.0.0"),
        r"headGroupSpec\.mlflow: listens on 0\.0\.0\.0; expected 127\.0\.0\.1",
    ),
    "token in the file": (
        put(*POD, "containers", 0, "env", 0, {"name": "HF", "value": "hf_" + "a1B2c3D4e5" * 4}),
        r"line \d+ holds a Hugging Face token",
    ),
}
BROKEN = [
    pytest.param(name, *case, id=f"{name.partition('.')[0]}: {what}")
    for name, cases in (("cluster.yaml", RAY_UP), ("ray-job.yaml", RAY_JOB))
    for what, case in cases.items()
]


@pytest.mark.parametrize(("name", "damage", "sentence"), BROKEN)
def test_every_damage_is_refused_with_its_sentence(name, damage, sentence, tmp_path):
    config = filled(name)
    damage(config)
    found = check_cluster(write(tmp_path, name, config))
    assert found
    assert any(re.search(sentence, line) for line in found), found
    assert not any("EXAMPLE" in line or "hunter2" in line or "a1B2" in line for line in found), (
        "shows the secret"
    )


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ('ray start --labels="a=1;b=2" --num-cpus=0; x --y=1', {"labels": "a=1;b=2", "num-cpus": "0"}),
        ("ray start --head --num-cpus 0 --port=6379&& x", {"head": "", "num-cpus": "0", "port": "6379"}),
        ("ray start --resources='{\"a\": 1}' --block\nx --y", {"resources": '{"a": 1}', "block": ""}),
        ("ray start --head \\\n  --num-cpus=0 | tee log", {"head": "", "num-cpus": "0"}),
        ("ray start --labels '' --num-cpus 0", {"labels": "", "num-cpus": "0"}),
        ("ray start --address=$RAY_HEAD_IP:6379", {"address": "$RAY_HEAD_IP:6379"}),
    ],
)
def test_a_command_s_options_end_where_the_shell_ends_it(command, options):
    assert _start(["ray stop", command], "head") == (command, options)


def test_a_rule_that_cannot_read_its_part_does_not_hide_the_others(tmp_path):
    config = filled("ray-job.yaml")
    put(*POD, "containers", 0, "env", 3)(config)
    put(*GROUP, "maxReplicas", 0)(config)
    put(*KUBE_HEAD, "serviceType", "LoadBalancer")(config)
    found = " ".join(check_cluster(write(tmp_path, "ray-job.yaml", config)))
    assert "maxReplicas is 0" in found
    assert "its service is open" in found
    assert found.count("workerGroupSpecs.gpu-spot cannot be read") == 1


def test_no_file_no_yaml_no_cluster(tmp_path):
    with pytest.raises(ClusterError, match=r"gone\.yaml: cannot be read \(No such file"):
        check_cluster(tmp_path / "gone.yaml")
    path = tmp_path / "x.yaml"
    path.write_text("a: [")
    with pytest.raises(ClusterError, match="not YAML"):
        check_cluster(path)
    path.write_text("- a")
    with pytest.raises(ClusterError, match="expected keys and values at its top level"):
        check_cluster(path)


def test_gcp_machines(tmp_path):
    """The differences that cluster.yaml describes make a file that passes, and its GPUs are counted."""
    config = filled("cluster.yaml")
    config["provider"] = {
        "type": "gcp",
        "region": "us-central1",
        "availability_zone": "us-central1-a",
        "project_id": "p",
    }
    for name, kind in config["available_node_types"].items():
        kind["node_config"] = {"machineType": "n1-standard-16", "disks": [], "scheduling": []}
        if name != "head":
            kind["node_config"]["guestAccelerators"] = [
                {"acceleratorType": "nvidia-t4", "acceleratorCount": 1}
            ]
    spot = config["available_node_types"]["gpu_spot"]
    spot["node_config"]["scheduling"] = [{"provisioningModel": "SPOT"}]
    path = write(tmp_path, "cluster.yaml", config)
    assert check_cluster(path) == []
    spot["node_config"]["guestAccelerators"][0]["acceleratorCount"] = 2
    spot["node_config"]["machinetype"] = spot["node_config"].pop("machineType")
    path.write_text(yaml.safe_dump(config))
    found = " ".join(check_cluster(path))
    assert "resources.GPU is 1; its guestAccelerators are 2" in found
    assert "machinetype: gcp knows no such key; did you mean machineType?" in found


def test_table_of_machines():
    assert AWS_GPUS["g6e.12xlarge"] == (48, 4)
    assert AWS_GPUS["p5en.48xlarge"] == (192, 8)
    assert all(cpus >= 4 and gpus in (1, 4, 8) for cpus, gpus in AWS_GPUS.values())
