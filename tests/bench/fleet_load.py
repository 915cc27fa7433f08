"""A fleet's clients in a process of their own: `python -m tests.bench.fleet_load < wishes.json`.

All lease the key of one model at once, each over its own connection and with its own TLS key; one
that is told to come later (RetryInfo) does. Prints one JSON list: for each client the name of its
lease, the seconds until it had the key, and its attempts.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import (  # type: ignore[import-untyped]  # ships no py.typed
    error_details_pb2,
    status_pb2,
)
from modelkms.key_transport import KeyTransport
from modelkms_api.v1 import key_service_pb2, key_service_pb2_grpc

_LATER = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_GIVE_UP_S = 300.0


async def main(wishes: dict[str, Any]) -> None:
    """Wishes: `port`, `model`, and `folders` with certificate, key and CA of each client."""
    ca = Path(wishes["ca_file"]).read_bytes()
    credentials = [
        grpc.ssl_channel_credentials(
            ca, (Path(each) / "key.pem").read_bytes(), (Path(each) / "certificate.pem").read_bytes()
        )
        for each in wishes["folders"]
    ]
    requests = [
        key_service_pb2.LeaseDataKeyRequest(
            name=wishes["model"], client_key=KeyTransport().offer().message
        )
        for _ in credentials
    ]
    began = time.monotonic()
    clients = zip(credentials, requests, strict=True)
    leased = await asyncio.gather(*(_lease(wishes["port"], *each, began) for each in clients))
    sys.stdout.write(json.dumps(leased) + "\n")


async def _lease(
    port: int,
    credentials: grpc.ChannelCredentials,
    request: key_service_pb2.LeaseDataKeyRequest,
    began: float,
) -> dict[str, Any]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        stub: Any = key_service_pb2_grpc.KeyServiceStub(channel)
        attempts = 0
        while True:
            attempts += 1
            try:
                answer = await stub.LeaseDataKey(request, timeout=60, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _LATER or time.monotonic() - began > _GIVE_UP_S:
                    raise
                await asyncio.sleep(_retry_s(error) * random.uniform(1.0, 2.0))
                continue
            seconds = time.monotonic() - began
            return {"lease": answer.lease.name, "seconds": seconds, "attempts": attempts}


def _retry_s(error: grpc.aio.AioRpcError) -> float:
    """What the service asks for; else a tenth of a second."""
    told = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if told is not None:
        for detail in status_pb2.Status.FromString(told).details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return float(info.retry_delay.ToTimedelta().total_seconds())
    return 0.1


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
