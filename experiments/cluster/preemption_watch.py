"""On a spot machine, turn the cloud's notice into a drain of its Ray node.

Ray itself asks no cloud. A drained node gets no new work, and Ray Train moves its trials before the machine
ends. Without it the end is a crash, which counts as a failure of the trial.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

AWS = "http://169.254.169.254"
"""Instance metadata (docs.aws.amazon.com/AWSEC2, spot-instance-termination-notices); IMDSv2 wants a token."""

GCP = "http://metadata.google.internal"
"""Instance metadata (cloud.google.com/compute/docs/instances/spot)."""

LOOK_EVERY_S = 5.0
"""AWS advises 5 s; GCP's notice comes 30 s ahead."""

GCP_NOTICE_S = 30
MARGIN_S = 10
"""The node is said to end this much before it does: what moves then moves from a living machine."""

PATIENCE_S = 2.0
"""A metadata server answers in milliseconds, and on other machines there is none."""


@dataclass(frozen=True)
class Cloud:
    """Where a machine's cloud is asked.

    Attributes:
        aws, gcp: address of the metadata server; another one in tests.
    """

    aws: str = AWS
    gcp: str = GCP

    def is_spot(self) -> bool:
        """Tell whether this machine may be taken away."""
        if self._aws("instance-life-cycle") == "spot":
            return True
        return self._gcp("scheduling/preemptible") == "TRUE"

    def seconds_left(self) -> float | None:
        """Return how long this machine lives, if the cloud has given notice."""
        notice = self._aws("spot/instance-action")
        if notice:
            end = datetime.fromisoformat(json.loads(notice)["time"].replace("Z", "+00:00"))
            return (end - datetime.now(UTC)).total_seconds()
        return GCP_NOTICE_S if self._gcp("preempted") == "TRUE" else None

    def _aws(self, what: str) -> str:
        token = _ask(
            f"{self.aws}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT"
        )
        if not token:
            return ""
        return _ask(f"{self.aws}/latest/meta-data/{what}", {"X-aws-ec2-metadata-token": token})

    def _gcp(self, what: str) -> str:
        return _ask(f"{self.gcp}/computeMetadata/v1/instance/{what}", {"Metadata-Flavor": "Google"})


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """Return the answer; empty if there is none, or no such thing."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, TimeoutError):
        return ""


def watch(address: str, node_id: str, say: Callable[[str], None], cloud: Cloud | None = None) -> int:
    """Wait for the notice and drain this node; return at once on a machine that is no spot machine.

    Args:
        address: host and port of the cluster.
        node_id: hex id of the node; empty means the one on this machine.
        say: told what happens.
        cloud: where to ask.

    Returns:
        0 if there is nothing to watch or the node was drained, 1 if Ray refused.
    """
    cloud = cloud or Cloud()
    if not cloud.is_spot():
        say("not a spot machine: nothing to watch")
        return 0
    say("spot machine: waiting for its notice")
    while (left := cloud.seconds_left()) is None:
        time.sleep(LOOK_EVERY_S)
    deadline = max(round(left) - MARGIN_S, 1)
    say(f"notice: this machine ends in {left:.0f} s; draining it")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command += ["--deadline-remaining-seconds", str(deadline), *(["--node-id", node_id] if node_id else [])]
    # without an id the command asks the Ray that it joins, which must be this cluster's
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, check=False)
    say("drained" if done.returncode == 0 else "Ray refused to drain this node")
    return min(done.returncode, 1)
