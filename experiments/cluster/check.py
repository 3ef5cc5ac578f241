"""Check cluster.yaml (`ray up`) and ray-job.yaml (KubeRay) without a cloud.

First Ray's own validation, then what that misses: misspelt keys of the cloud's API, a head that runs trials,
workers that bill while idle, ports open to the world, credentials in the file.
"""

import logging
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from experiments.cluster.kuberay_rules import check_ray_job, derive_config
from experiments.cluster.ray_rules import check_ray_up
from pipeline.redaction import find_secret

PLACEHOLDER = "FILL-IN"
"""Stands where only the user knows the value."""


class ClusterError(ValueError):
    """A cluster file that cannot be read at all; the message is one sentence."""


def check_cluster(path: Path) -> list[str]:
    """Return what is wrong with a cluster file, one sentence each; empty if nothing is.

    Args:
        path: for ``ray up``, or a KubeRay RayJob.

    Raises:
        ClusterError: it cannot be read, is no YAML, or neither of the two.
    """
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ClusterError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict) or not {"cluster_name", "kind"} & config.keys():
        raise ClusterError(f"{path}: neither has a cluster_name (for `ray up`) nor is it a Kubernetes object")
    found = list(_secrets(text))
    if places := list(_placeholders(config)):
        found.append(
            f"still {PLACEHOLDER}: {', '.join(places)}; the comment at the first says how to find it"
        )
    by_ray = list(_validate(config))
    if by_ray:  # our rules expect the shape that Ray's schema gives
        return found + by_ray
    return found + list(check_ray_job(config) if "kind" in config else check_ray_up(config, path.parent))


def _secrets(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        kind = find_secret(line, {})
        if kind:
            yield (
                f"line {number} holds {kind}; rights come from the instance profile or a Kubernetes secret, "
                "tokens from a file outside: remove it, and revoke it if this file was ever shared"
            )


def _placeholders(value: Any, at: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _placeholders(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _placeholders(inner, f"{at}[{index}]")
    elif value == PLACEHOLDER:
        yield at


def _validate(config: dict[str, Any]) -> Iterator[str]:
    """Yield what Ray's own validation objects to."""
    from pipeline.ray_train.ray_internals import validate_cluster_config  # imports Ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # Ray tells of defaults it fills in
            if "kind" in config:
                derive_config(config)
            else:
                validate_cluster_config(config)
    except jsonschema.ValidationError as error:
        at = ".".join(str(part) for part in error.absolute_path)
        yield f"{at or 'top level'}: {error.message}"
    except (ValueError, RuntimeError) as error:
        yield f"Ray refuses it: {' '.join(str(error).split())}"
    except (KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        yield f"Ray cannot read it: {type(error).__name__} {error}; a part is missing or has the wrong type"
