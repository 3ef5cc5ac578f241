"""Simulated hosts: network namespaces joined by a bridge, each with an address and a Ray node of its own.

Nothing of the machine's own network is touched: the bridge lies in a namespace too. What the hosts share is
the machine's file system, as hosts of a cluster share a network drive; each has its own directory for Ray,
and whatever else ``Host.own`` names.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.ray_train.local_cluster import LOCAL_RAY
from pipeline.storage.temporary import temporary_folder
from tests.experiments.cluster.hosted import is_worker  # a helper of this folder; no package

LONG = "BIASWISE_LONG_TESTS"
"""Environment variable: set, the tests that take minutes and a machine of their own run too."""

NET = "10.77.0"
"""Addresses inside the namespaces alone; nothing outside them can reach one."""

METADATA = "169.254.169.254"
"""Where a machine of EC2 asks about itself."""

PORT = 6379
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    LOCAL_RAY: "1",  # there is no dashboard, and what needs one stays away
    "RAY_worker_niceness": "0",
    "GLOO_SOCKET_IFNAME": "eth0",  # gloo would take what the host's name stands for
    # The machine may be busy with other tests: nothing but a cut is to look like one.
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # A host that is cut off counts as dead after some 12 s; Ray's defaults make that 50 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # and gives up by itself after as long
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
PATIENCE_S = 400
"""A node is up in 8 s, on a machine that does much else in minutes."""

PATIENT_START = f"""
import time
import ray._private.services as services
from ray.scripts.scripts import main

ask = services.get_node


def ask_again(*words, **named):
    deadline = time.monotonic() + {PATIENCE_S}
    while True:
        try:
            return ask(*words, **named)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


services.get_node = ask_again
main()
"""
"""``ray start``, which gives a node 30 s to appear and cannot be told otherwise (private to Ray; pinned)."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str:
    """Why hosts cannot be simulated here and now; empty if they can."""
    if not os.environ.get(LONG):
        return f"takes minutes; {LONG}=1 runs it"
    if shutil.which("ip") is None:
        return "there is no `ip` (package iproute2)"
    probe = f"bw{os.getpid()}probe"
    try:
        ip("netns", "add", probe)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.decode().strip()}"
    ip("netns", "del", probe)
    return ""


@dataclass
class Host:
    """One host.

    Attributes:
        namespace: of its network.
        address: of its end of the cable.
        net, cable: namespace of the bridge, and the cable's end there.
        own: its disk: place that its processes see -> the folder of this machine that lies there for them.
        environment: of whatever runs on it.
        running: processes started on it.
    """

    namespace: str
    address: str
    net: str
    cable: str
    own: dict[Path, Path]
    environment: dict[str, str]
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, command: list[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Run a command on the host."""
        # `ip netns exec` gives every command a space of its own for mounts
        mounts = "".join(f"mount --bind {there} {place} && " for place, there in self.own.items())
        whole = ["ip", "netns", "exec", self.namespace, "sh", "-c", f'{mounts}exec "$@"', "sh", *command]
        with log.open("a") as file:
            made = subprocess.Popen(
                whole, env=self.environment | environment, stdout=file, stderr=file, start_new_session=True
            )
        self.running.append(made)
        return made

    def join(self, head: "Host", log: Path, *options: str) -> None:
        """Start a Ray node, and wait until it is part of the cluster; on the head itself, the head's."""
        role = [f"--address={head.address}:{PORT}"]
        if head is self:
            role = ["--head", f"--port={PORT}", "--include-dashboard=false", "--no-monitor"]
        command = [sys.executable, "-c", PATIENT_START, "start", *role, "--block", *options]
        command.append("--include-log-monitor=false")  # each process of Python more is seconds of CPU
        command += [f"--node-ip-address={self.address}", "--object-store-memory=100000000"]
        deadline = time.monotonic() + PATIENCE_S
        before = _starts(log)
        made = self.start(command, log)
        while _starts(log) == before:
            assert made.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def drive(self, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """Run a command on the head that finds the cluster."""
        return self.start(command, log, RAY_ADDRESS=f"{self.address}:{PORT}")

    def pids(self) -> set[int]:
        """Every process on the host."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        return {int(word) for word in done.stdout.split()}

    def ranks(self) -> int:
        """How many workers it has; one that was cut off may not know yet that it has lost its own."""
        return sum(map(is_worker, self.pids()))

    def kill(self) -> None:
        """End everything on it, as a power cut does."""
        while found := self.pids():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.running:
            process.wait()
        self.running.clear()

    def give_notice(self, head: "Host", logs: Path, seconds: float) -> None:
        """Let the cloud announce its end, where `biaswise cluster watch` looks."""
        notice = logs / f"notice-{self.namespace}"
        server = [sys.executable, str(Path(__file__).with_name("spot.py")), METADATA, "80", str(notice)]
        ip("-n", self.namespace, "addr", "add", f"{METADATA}/32", "dev", "lo")
        self.start(server, logs / "metadata.log")
        watch = [sys.executable, "-m", "experiments.cli", "cluster", "watch"]
        notice.write_text(str(time.time() + seconds))
        self.start([*watch, "--address", f"{head.address}:{PORT}"], logs / "watch.log")

    def unplug(self) -> None:
        """Cut it off: nothing arrives, and nobody is told."""
        ip("-n", self.net, "link", "set", self.cable, "down")

    def plug(self) -> None:
        """Undo ``unplug``."""
        ip("-n", self.net, "link", "set", self.cable, "up")


@contextmanager
def made_hosts(number: int) -> Iterator[list[Host]]:
    """Make a head and ``number`` hosts, joined by a bridge; nothing runs on them yet."""
    net, token = f"bw{os.getpid()}net", secrets.token_hex(32)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "GLOO_", "BIASWISE_"))
    }
    hosts: list[Host] = []
    with temporary_folder("hosts") as scratch:
        (scratch / "ray").mkdir()
        given = kept | SETTINGS | {"RAY_AUTH_TOKEN": token, "RAY_TMPDIR": str(scratch / "ray")}
        ip("netns", "add", net)
        try:
            ip("-n", net, "link", "add", "br0", "type", "bridge")
            ip("-n", net, "link", "set", "br0", "up")
            for i in range(number + 1):
                own = scratch / f"host{i}"
                own.mkdir()
                address, places = f"{NET}.{10 + i}", {scratch / "ray": own}
                host = Host(f"bw{os.getpid()}h{i}", address, net, f"p{i}", places, dict(given))
                hosts.append(host)
                _wire(host)
            yield hosts
        finally:
            for host in hosts:
                with suppress(subprocess.CalledProcessError):
                    host.kill()
                    ip("netns", "del", host.namespace)
            ip("netns", "del", net)


def _starts(log: Path) -> int:
    return log.read_text().count("Ray runtime started") if log.exists() else 0


def _wire(host: Host) -> None:
    ip("netns", "add", host.namespace)
    ip(
        "-n",
        host.net,
        "link",
        "add",
        host.cable,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        host.namespace,
    )
    ip("-n", host.net, "link", "set", host.cable, "master", "br0", "up")
    ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    ip("-n", host.namespace, "link", "set", "eth0", "up")
    ip("-n", host.namespace, "link", "set", "lo", "up")
