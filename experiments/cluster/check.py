"""Check cluster.yaml (`ray up`) and ray-job.yaml (KubeRay) without a cloud.

Ray's own validation comes first. The project's rules find what it misses: misspelt keys of the cloud's API,
a head that runs trials, workers that are billed while idle, ports that are open to the world, credentials in
the file.
"""

import logging
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema

from experiments.cluster.file_rules import run_rules
from experiments.cluster.kuberay_rules import check_ray_job, derive_config
from experiments.cluster.ray_rules import check_ray_up
from pipeline.json_files import JsonError, read_bytes
from pipeline.redaction import find_secret
from pipeline.yaml_files import parse_yaml

MAX_BYTES = 2**20
"""Largest file that is read; ours have 10 kB."""

PLACEHOLDER = "FILL-IN"
"""Placeholder for a value that only the user knows."""


class ClusterError(ValueError):
    """A cluster file that cannot be read at all; the message is one sentence."""


def check_cluster(path: Path) -> list[str]:
    """Return the errors of a cluster file, one sentence each.

    Args:
        path: a file for ``ray up``, or a KubeRay RayJob.

    Raises:
        ClusterError: the file cannot be read, is no YAML, or is neither of the two.
    """
    try:
        text = read_bytes(path, MAX_BYTES).decode()
        config = parse_yaml(text)
    except FileNotFoundError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ClusterError(f"{path}: not UTF-8 (byte {error.start})") from error
    except JsonError as error:
        raise ClusterError(f"{path}: {error.reason}") from error
    if not {"cluster_name", "kind"} & config.keys():
        raise ClusterError(f"{path}: neither has a cluster_name (for `ray up`) nor is it a Kubernetes object")
    errors = list(_secrets(text))
    if places := list(_placeholders(config)):
        errors.append(
            f"still {PLACEHOLDER}: {', '.join(places)}; the comment at the first says how to find it"
        )
    rays_errors = list(_validate(config))
    if rays_errors:  # our rules need the structure that Ray's schema ensures
        return errors + rays_errors
    ours = check_ray_job(config) if "kind" in config else check_ray_up(config, path.parent)
    return errors + list(dict.fromkeys(run_rules([("the file", ours)])))  # two rules may miss the same part


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
    """Yield the errors that Ray's own validation finds."""
    from pipeline.ray_train.ray_internals import validate_cluster_config  # imports Ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with (
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
        ):  # Ray prints the defaults that it fills in
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
