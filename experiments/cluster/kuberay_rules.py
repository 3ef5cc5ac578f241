"""Rules for a KubeRay RayJob; fields of KubeRay 1.7 (docs.ray.io, KubeRay CRD API reference)."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from experiments.cluster.file_rules import LOOPBACK, Config, run_rules, words, wrong_version
from pipeline.json_files import JsonError, parse_json
from pipeline.yaml_files import parse_yaml

JOB = words(
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished"
)
CLUSTER = words(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs"
)
HEAD = words("enableIngress headService labels rayStartParams resources serviceType template")
WORKER = words(
    "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams replicas "
    "resources scaleStrategy suspend template"
)
DRAIN_S = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def derive_config(job: Config) -> dict[str, Any]:
    """Return the autoscaler's configuration that Ray derives from the job's cluster.

    Raises:
        ValueError: Ray refuses it, or it is no RayJob.
    """
    from pipeline.ray_train.ray_internals import kuberay_autoscaling_config  # imports Ray

    if job.get("kind") != "RayJob":
        raise ValueError(f"kind is {job.get('kind')}; expected RayJob")
    metadata = {"namespace": "default", **job["metadata"]}
    cluster = {"metadata": metadata, "spec": job["spec"]["rayClusterSpec"]}
    return kuberay_autoscaling_config(cluster)


def check_ray_job(job: Config) -> Iterator[str]:
    """Yield the errors of a RayJob that has passed Ray's own reading, one sentence each."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    if job.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion is {job.get('apiVersion')}; expected ray.io/v1"
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    places = [(f"workerGroupSpecs.{group['groupName']}", group) for group in groups]
    yield from run_rules(
        [
            ("spec", _unknown("spec", spec, JOB)),
            ("spec.rayClusterSpec", _unknown("spec.rayClusterSpec", cluster, CLUSTER)),
            ("headGroupSpec", _unknown("headGroupSpec", head, HEAD)),
            ("spec", _job(spec)),
            ("spec.rayClusterSpec", _cluster(cluster)),
            ("headGroupSpec", _head(head)),
            *((at, _unknown(at, group, WORKER)) for at, group in places),
            *((at, _group(at, group)) for at, group in places),
            ("workerGroupSpecs", _market(groups)),
            *((at, _pod(at, part)) for at, part in [("headGroupSpec", head), *places]),
        ]
    )


def _unknown(at: str, given: Config, known: frozenset[str]) -> Iterator[str]:
    for key in given.keys() - known:
        close = get_close_matches(key, known, 1)
        yield f"{at}.{key}: KubeRay knows no such key" + (f"; did you mean {close[0]}?" if close else "")


def _job(spec: Config) -> Iterator[str]:
    if not str(spec.get("entrypoint", "")).startswith("biaswise "):
        yield f"spec.entrypoint is {spec.get('entrypoint')!r}; expected such as biaswise study run demo"
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield "spec.shutdownAfterJobFinishes is not true; the cluster would be billed after the study's end"
    try:
        parse_yaml(str(spec.get("runtimeEnvYAML", "{}")))
    except JsonError as error:
        yield f"spec.runtimeEnvYAML: {error.reason}"


def _cluster(cluster: Config) -> Iterator[str]:
    from ray import __version__ as ours

    if cluster.get("rayVersion") != ours:
        yield f"rayClusterSpec.rayVersion is {cluster.get('rayVersion')}; the project pins {ours}"
    if cluster.get("enableInTreeAutoscaling") is not True:
        yield "rayClusterSpec.enableInTreeAutoscaling is not true; no worker would ever start"
    if (cluster.get("autoscalerOptions") or {}).get("version") != "v2":
        yield "rayClusterSpec.autoscalerOptions.version is not v2; v1 does not prefer spot by priority"
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "rayClusterSpec.authOptions.mode is not token; whoever reaches a port could run code"


def _head(head: Config) -> Iterator[str]:
    params = head["rayStartParams"]
    if params.get("num-cpus") != "0":
        yield f'headGroupSpec: num-cpus is {params.get("num-cpus")}; expected "0": no trial runs on the head'
    try:
        drivers = parse_json(json.loads(params.get("resources", '"{}"')), dict).get("tune_driver", 0)
    except (ValueError, TypeError, AttributeError, RecursionError):
        drivers = 0
    if drivers < 1:
        yield (
            "headGroupSpec.rayStartParams.resources: trial drivers need the resource tune_driver; expected "
            '\'"{\\"tune_driver\\": 16}"\', quoted twice'
        )
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "headGroupSpec: its service is open to the outside; expected ClusterIP and port-forward"


def _group(at: str, group: Config) -> Iterator[str]:
    low, now, high = (group.get(k, 0) for k in ("minReplicas", "replicas", "maxReplicas"))
    if low or now:
        yield f"{at}: minReplicas {low}, replicas {now}; expected 0: billed while no trial runs"
    if high < 1:
        yield f"{at}.maxReplicas is {high}; expected at least 1"
    container = group["template"]["spec"]["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    if not int(limits.get("nvidia.com/gpu", 0)):
        yield f"{at}: no nvidia.com/gpu in the limits of its first container; trials need a GPU"
    seconds = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)  # Kubernetes' default
    drain = str(_variables(container).get(DRAIN_S, "0"))
    if not drain.isdecimal():
        yield f'{at}: {DRAIN_S} is {drain!r}; expected whole seconds without a unit, such as "100"'
    elif not 0 < int(drain) < seconds:
        yield (
            f"{at}: {DRAIN_S} is {drain}, terminationGracePeriodSeconds {seconds}; expected above 0 and "
            "below the second: a pod that must go drains first, so that its trial moves in time"
        )


def _market(groups: list[Config]) -> Iterator[str]:
    spot = [group for group in groups if (group.get("labels") or {}).get("market") == "spot"]
    on_demand = [group for group in groups if group not in spot]
    if (
        spot
        and on_demand
        and min(g.get("priority", 0) for g in spot) <= max(g.get("priority", 0) for g in on_demand)
    ):
        yield "workerGroupSpecs: spot is preferred only if its priority is above that of the others"
    if not on_demand:
        yield "workerGroupSpecs: all workers are spot; a study waits for ever when there is none to be had"


def _variables(container: Config) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container.get("env") or [] if "value" in entry}


def _pod(at: str, group: Config) -> Iterator[str]:
    pod = group["template"]["spec"]
    claims = {v["name"] for v in pod.get("volumes") or [] if "persistentVolumeClaim" in v}
    ray = pod["containers"][0]
    home = _variables(ray).get("BIASWISE_HOME", "")
    lasting = {m["mountPath"] for m in ray.get("volumeMounts") or [] if m["name"] in claims}
    if home not in lasting:
        yield f"{at}: BIASWISE_HOME is {home!r}; expected a persistent claim mounted there"
    for container in pod["containers"]:
        name = f"{at}.{container['name']}"
        image = container.get("image", "")
        if image.endswith(":latest") or (":" not in image and image != "FILL-IN"):
            yield f"{name}.image is {image}; expected a fixed tag: pods of one study must run the same code"
        yield from wrong_version(f"{name}.image", image)
        words = [str(w) for w in (*container.get("command", []), *container.get("args", []))]
        if "--host" in words and words[words.index("--host") + 1] not in LOOPBACK:
            yield f"{name}: listens on {words[words.index('--host') + 1]}; expected 127.0.0.1"
