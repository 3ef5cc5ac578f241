"""A real S3 server on 127.0.0.1, for studies that are kept in a bucket."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from pipeline.ray_train.local_cluster import prepare_ray

prepare_ray()  # before a test imports Ray

SECRET = "planted-secret-7d1e0c44"
"""What must appear in no file, no log and no object; the server takes any."""


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
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
