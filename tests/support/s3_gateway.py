"""A real S3 server (versitygw) on a folder of this machine, and buckets in it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelkms_api.object_store import BucketSettings

from tests.support.planted_secrets import CREDENTIAL, plant
from tests.support.tools import go_tool

_START_TIMEOUT_S = 30.0
REGION = "us-east-1"


@dataclass
class S3Gateway:
    """A running gateway.

    Attributes:
        folder: buckets are folders in it, objects are files.
        port: on loopback, plain HTTP.
    """

    folder: Path
    port: int
    access_key_id: str
    secret_access_key: str
    process: subprocess.Popen[bytes]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_bucket(self) -> BucketSettings:
        """A new, empty bucket, and how to get in."""
        name = f"bucket-{secrets.token_hex(4)}"
        (self.folder / "buckets" / name).mkdir()
        return self.settings(name)

    def settings(self, bucket: str, *, port: int | None = None) -> BucketSettings:
        """Of a bucket; `port`: of something in between."""
        endpoint = self.endpoint if port is None else f"http://127.0.0.1:{port}"
        return BucketSettings(
            kind="s3",
            bucket=bucket,
            endpoint=endpoint,
            region=REGION,
            credentials_file=self.credentials_file,
        )

    @property
    def credentials_file(self) -> Path:
        return self.folder / "credentials.json"

    def object_file(self, settings: BucketSettings, key: str) -> Path:
        """The file that is an object: what an attacker with the bucket edits."""
        return self.folder / "buckets" / settings.bucket / settings.prefix / key


@contextmanager
def running_gateway(folder: Path) -> Iterator[S3Gateway]:
    """A gateway over `folder`, stopped and its folder emptied at the end."""
    buckets = folder / "buckets"
    buckets.mkdir(parents=True)
    (folder / "sidecar").mkdir()
    access, secret = secrets.token_hex(8), secrets.token_hex(16)
    plant(CREDENTIAL, secret)
    (folder / "credentials.json").write_text(
        json.dumps({"access_key_id": access, "secret_access_key": secret})
    )
    port = _free_port()
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(go_tool("versitygw")), "--port", f"127.0.0.1:{port}", "--region", REGION),
                *("posix", "--sidecar", str(folder / "sidecar"), str(buckets)),
            ],
            env={
                "PATH": os.environ["PATH"],
                "ROOT_ACCESS_KEY_ID": access,
                "ROOT_SECRET_ACCESS_KEY": secret,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(port, process, folder / "gateway.log")
        yield S3Gateway(folder, port, access, secret, process)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(buckets, ignore_errors=True)


def _free_port() -> int:
    """The gateway does not tell which port it chose, so one is chosen for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
