"""Many watchers in a process of their own: `python -m tests.support.watch_load < wishes.json`.

Two asyncio gRPC loops in one process get into each other's way (grpc's one poller), so whoever
tests the watch port with many streams keeps them out of its own.

Prints `ready` once every stream had its first message, then, when all were told of an end, one JSON
list: seconds on the machine's monotonic clock at which each was told.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
from modelkms_api.v1 import watch_service_pb2 as pb

METHOD = "/modelkms_api.v1.WatchService/WatchLeases"


@contextmanager
def many_watchers(port: int, holders: Sequence[dict[str, object]]) -> Iterator[IO[str]]:
    """Such a process; what it says. `holders`: as for `main`."""
    watchers = subprocess.Popen(
        [sys.executable, "-m", "tests.support.watch_load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watchers.stdin is not None
        assert watchers.stdout is not None
        watchers.stdin.write(json.dumps({"port": port, "holders": holders}))
        watchers.stdin.close()
        yield watchers.stdout
    finally:
        watchers.kill()
        watchers.wait()
        if watchers.stdout is not None:
            watchers.stdout.close()


async def main(wishes: dict[str, Any]) -> None:
    """Wishes: `port`; `holders`, each a `folder` with certificate, key and CA, and `leases`."""
    ready = asyncio.Semaphore(0)
    channels, tasks = [], []
    for holder in wishes["holders"]:
        folder = Path(holder["folder"])
        channel = grpc.aio.secure_channel(
            f"localhost:{wishes['port']}",
            grpc.ssl_channel_credentials(
                (folder / "ca.pem").read_bytes(),
                (folder / "key.pem").read_bytes(),
                (folder / "certificate.pem").read_bytes(),
            ),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        channels.append(channel)
        tasks += [asyncio.create_task(_watch(channel, name, ready)) for name in holder["leases"]]
        await asyncio.sleep(0)
    begun = asyncio.create_task(_all_ready(ready, len(tasks)))
    await asyncio.wait([begun, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()  # why it ended before all had begun
    await begun
    print("ready", flush=True)
    told = await asyncio.gather(*tasks)
    print(json.dumps(told), flush=True)
    for channel in channels:
        await channel.close()


async def _all_ready(ready: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        await ready.acquire()


async def _watch(channel: grpc.aio.Channel, name: str, ready: asyncio.Semaphore) -> float:
    watch: Any = channel.unary_stream(
        METHOD,
        request_serializer=pb.WatchLeasesRequest.SerializeToString,
        response_deserializer=pb.WatchLeasesResponse.FromString,
    )
    call = watch(pb.WatchLeasesRequest(leases=[name]))
    async for message in call:
        if message.sequence == 1:
            ready.release()
        if message.ended:
            told = time.monotonic()
            call.cancel()
            return told
    raise RuntimeError("the stream ended")


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
