"""For every folder: where tests run, which come first, an S3 server, and a Python that starts at once."""

import fcntl
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Before torch is imported: threads wait for each other in loops, and with more of them than cores for long.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // WORKERS)))

from pipeline.ray_train.local_cluster import prepare_ray  # noqa: E402  after the threads are set
from tests.machine import unused_port  # noqa: E402

prepare_ray()  # before a test imports Ray

SECRET = "planted-secret-7d1e0c44"
"""What must appear in no file, no log and no object; the server takes any."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests that take longest come first, so that two workers end together."""

    def seconds(item: pytest.Item) -> float:
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("seconds", 0) if mark else 0

    items.sort(key=seconds, reverse=True)  # stable: the others keep their order


LEAN_RAY = {
    "RAY_worker_niceness": "0",  # with Ray's 15 other tests beside this one would starve its workers
    "RAY_prestart_worker_first_driver": "0",  # no spare workers, which import Ray for nothing
    "RAY_enable_worker_prestart": "0",
}


@pytest.fixture(scope="session", autouse=True)
def _in_the_project() -> Iterator[None]:
    """Tests name files relative to the project's root, whatever folder pytest was called in."""
    with chdir(ROOT):
        yield


@pytest.fixture(autouse=True)
def _kernels_of_a_gpu() -> None:
    """Take back what a trial on the CPU switches on: a GPU would refuse kernels in the next test."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder that many tests read and none changes: once for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, how: Callable[[Path], object]) -> Path:
        done = place / f"made-{name}.done"
        with (place / f"made-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                how(place / f"made-{name}")
                done.touch()
        return place / f"made-{name}"

    return make


@pytest.fixture(scope="session")
def quick_python() -> Iterator[dict[str, str]]:
    """A Python for Ray's processes that starts at once; the environment that leads to it.

    ``QUICK_PYTHON`` is a program to be called as Python is. Its processes are forked from one that has
    imported torch and the model's libraries, which is four fifths of what a trial of a few steps costs;
    ``QUICK_PARENT`` is that one's process id. See ``tests/chaos/nursery.py``.
    """
    from pipeline.storage.temporary import temporary_folder
    from tests.chaos.cluster import SINGLE, await_nursery, nursery, shim

    with temporary_folder("quick") as scratch, pytest.MonkeyPatch.context() as patch:
        given = {**SINGLE, "CHAOS_NURSERY": str(scratch / "nursery"), "PYTHONPATH": str(ROOT)}
        for key, value in given.items():
            patch.setenv(key, value)
        with nursery(log := scratch / "log") as pid:
            patch.undo()
            await_nursery(log)
            yield {**given, **LEAN_RAY, "QUICK_PYTHON": str(shim(scratch)), "QUICK_PARENT": str(pid)}


@pytest.fixture
def quick_ray(quick_python: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a Ray that this process starts take the Python that starts at once."""
    import multiprocessing.spawn  # noqa: F401  it keeps the Python that it finds when it is imported

    for key in ("CHAOS_NURSERY", *LEAN_RAY):
        monkeypatch.setenv(key, quick_python[key])
    monkeypatch.setattr(sys, "executable", quick_python["QUICK_PYTHON"])


@dataclass
class S3:
    """A running server.

    Attributes:
        port: where it listens.
        bucket: made for one test.
    """

    port: int
    bucket: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/studies"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def objects(self) -> dict[str, bytes]:
        """All objects of the bucket, as somebody else's client sees them."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"])
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        keys = [
            key for key in keys if not key.endswith("/")
        ]  # where pyarrow removed the last file of a folder
        found = {}
        for key in keys:
            with suppress(client.exceptions.NoSuchKey):  # removed since it was listed
                found[key] = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    port = unused_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120  # 5 s on a quiet machine
    while True:
        with suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).read()
            break
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield S3(port)
    process.kill()
    process.wait()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with a new bucket, and the environment that reaches it."""
    from pyarrow import fs

    server = S3(s3_server.port, f"b-{secrets.token_hex(6)}")
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    client = fs.S3FileSystem(
        allow_bucket_creation=True, scheme="http", endpoint_override=f"127.0.0.1:{server.port}"
    )
    client.create_dir(server.bucket)
    return server
