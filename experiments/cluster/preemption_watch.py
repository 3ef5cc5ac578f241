"""Drains the Ray node of a spot machine when the cloud gives notice of its end.

Ray itself does not ask the cloud. A drained node gets no new work, and Ray Train moves its trials before the
machine ends. Without a drain the end is a crash, and a crash counts as a failure of the trial.
"""

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

AWS = "http://169.254.169.254"
"""Instance metadata (docs.aws.amazon.com/AWSEC2, spot-instance-termination-notices); IMDSv2 needs a token."""

GCP = "http://metadata.google.internal"
"""Instance metadata (cloud.google.com/compute/docs/instances/spot)."""

POLL_S = 5.0
"""AWS advises 5 s."""

GCP_NOTICE_S = 30
"""GCP gives notice this long before the end."""

MARGIN_S = 10
"""The drain's deadline is this much before the machine's end, so that trials move while it still runs."""

TIMEOUT_S = 2.0
"""A metadata server answers in milliseconds; a machine that is not in the cloud has none."""


@dataclass(frozen=True)
class Cloud:
    """The metadata servers of this machine's cloud.

    Attributes:
        aws: address of the server of AWS; another one in tests.
        gcp: address of the server of GCP; another one in tests.
    """

    aws: str = AWS
    gcp: str = GCP

    def is_spot(self) -> bool:
        """Return True if the cloud may take this machine away."""
        if self._aws("instance-life-cycle") == "spot":
            return True
        return self._gcp("scheduling/preemptible") == "TRUE"

    def seconds_left(self) -> float | None:
        """Return the seconds until the cloud takes this machine away; None without a notice."""
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
    """Return the server's answer; empty if there is no server, no such entry or no whole answer."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException):
        return ""


def watch(address: str, node_id: str, say: Callable[[str], None], cloud: Cloud | None = None) -> int:
    """Wait for the notice and drain this node. On a machine that is no spot machine, return at once.

    Args:
        address: host and port of the cluster.
        node_id: hex id of the node; empty means the one on this machine.
        say: shows a message.
        cloud: the metadata servers.

    Returns:
        0 if there is nothing to watch or the node was drained, 1 if Ray refused.
    """
    cloud = cloud or Cloud()
    if not cloud.is_spot():
        say("not a spot machine: nothing to watch")
        return 0
    say("spot machine: waiting for its notice")
    while (left := cloud.seconds_left()) is None:
        time.sleep(POLL_S)
    deadline = max(round(left) - MARGIN_S, 1)
    say(f"notice: this machine ends in {left:.0f} s; draining it")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command += ["--deadline-remaining-seconds", str(deadline), *(["--node-id", node_id] if node_id else [])]
    # Without an id the command drains the node through which it joins the cluster of RAY_ADDRESS.
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, check=False)
    say("drained" if done.returncode == 0 else "Ray refused to drain this node")
    return min(done.returncode, 1)
