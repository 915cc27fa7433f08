"""Clients that lease data keys of random versions all the while, each over a connection of its own:
`python -m tests.support.lease_load < wishes.json`, or `leasing`.

Each begins its next lease a set time after it began the last one, or as soon as that has ended. At
a line on its input it prints, as a line of JSON, what happened since the line before.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from modelkms.key_transport import KeyTransport
from modelkms_api.v1 import key_service_pb2, key_service_pb2_grpc

from tests.support.certificates import Issued

_TIMEOUT_S = 60.0


class LeaseLoad:
    """The running process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def since_last(self) -> tuple[list[float], list[str]]:
        """Seconds that each lease took, in order of length, and what was refused, since the last
        call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        return sorted(said["seconds"]), said["errors"]


@contextmanager
def leasing(
    port: int, reader: Issued, model: str, versions: int, clients: int, every_s: float
) -> Iterator[LeaseLoad]:
    """`clients` that lease versions 1 to `versions` of a model, each one every `every_s`."""
    wishes = {
        "port": port,
        "identity": [part.decode() for part in (reader.ca, reader.key, reader.certificate)],
        "model": model,
        "versions": versions,
        "clients": clients,
        "every_s": every_s,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lease_load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(wishes) + "\n")
        process.stdin.flush()
        load = LeaseLoad(process)
        load.since_last()  # all are connected
        yield load
    finally:
        process.stdin.close()
        process.wait(_TIMEOUT_S)
        process.stdout.close()


@dataclass
class _Seen:
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def main() -> None:
    wishes = json.loads(sys.stdin.readline())
    seen, connected = _Seen(), asyncio.Semaphore(0)
    clients = [
        asyncio.create_task(_client(wishes, seen, connected)) for _ in range(wishes["clients"])
    ]
    for _ in clients:
        await connected.acquire()
    while await asyncio.to_thread(sys.stdin.readline):
        said = json.dumps({"seconds": seen.seconds, "errors": seen.errors})
        seen.seconds, seen.errors = [], []
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
    for client in clients:
        client.cancel()


async def _client(wishes: dict[str, Any], seen: _Seen, connected: asyncio.Semaphore) -> None:
    ca, key, certificate = (part.encode() for part in wishes["identity"])
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    offer = KeyTransport().offer().message
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{wishes['port']}", credentials, options
    ) as channel:
        await channel.channel_ready()
        connected.release()
        stub: Any = key_service_pb2_grpc.KeyServiceStub(channel)
        await asyncio.sleep(random.uniform(0, wishes["every_s"]))
        while True:
            request = key_service_pb2.LeaseDataKeyRequest(
                name=f"{wishes['model']}/versions/{random.randint(1, wishes['versions'])}",
                client_key=offer,
            )
            began = time.monotonic()
            try:
                await stub.LeaseDataKey(request, timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                seen.errors.append(f"{error.code()}: {error.details()}")
            took_s = time.monotonic() - began
            seen.seconds.append(took_s)
            await asyncio.sleep(max(0.0, wishes["every_s"] - took_s))


if __name__ == "__main__":
    asyncio.run(main())
