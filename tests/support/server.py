"""Real servers for tests: the shipped gRPC server over servicers of the test's choosing, and the
whole service as a process of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # no stubs
from grpc_health.v1.health import HealthServicer
from grpc_status import rpc_status
from prometheus_client import generate_latest

from kms_service.domain.ports import TokenVerifier
from kms_service.rpc.authentication import Authenticator
from kms_service.rpc.error_table import reasons
from kms_service.rpc.pipeline import Pipeline
from kms_service.rpc.pool import FairShare
from kms_service.rpc.rates import Rates
from kms_service.rpc.registration import full_methods
from kms_service.rpc.server import CallPools, RpcServer, ServerLimits, TokenPort
from kms_service.rpc.tls import ReloadingCredentials, TlsFiles
from kms_service.telemetry.logging import configure_logging
from kms_service.telemetry.metrics import Metrics
from tests.support.certificates import Issued, TestAuthority
from tests.support.planted_secrets import written

TRUST_DOMAIN = "test.example"


class WallClock:
    """The machine's clock, which a test may set forward."""

    def __init__(self) -> None:
        self.ahead_by = datetime.now(UTC) - datetime.now(UTC)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead_by


@dataclass
class RunningServer:
    """A started `RpcServer` and all that a test may look at."""

    authority: TestAuthority
    port: int
    metrics: Metrics
    clock: WallClock
    pools: CallPools
    tls_folder: Path
    log: io.StringIO
    health: HealthServicer
    server: RpcServer

    def channel(self, identity: Issued | str, **options: int) -> grpc.Channel:
        """A channel of an identity; text is a path in our trust domain."""
        if isinstance(identity, str):
            identity = self.authority.client(identity)
        return identity.channel(self.port, **options)

    def events(self) -> list[dict[str, Any]]:
        """The log, parsed: every line is one JSON object."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@contextmanager
def running_server(
    folder: Path,
    services: Mapping[ServiceDescriptor, object],
    *,
    authority: TestAuthority | None = None,
    limits: ServerLimits | None = None,
    share: int = 12,
    tokens: TokenVerifier | None = None,
    rates: Rates | None = None,
    at_once: tuple[int | None, int | None] = (None, None),
) -> Iterator[RunningServer]:
    """Start the shipped server over `services`; stop it at the end. With `tokens`, it has a token
    port too."""
    authority = authority or TestAuthority(TRUST_DOMAIN)
    limits = limits or ServerLimits(threads=4, streams=2)
    log = io.StringIO()
    configure_logging("debug", "json", log)
    authority.server().write(folder / "tls")
    files = TlsFiles(*(folder / "tls" / name for name in ("certificate.pem", "key.pem", "ca.pem")))
    metrics = Metrics(
        list(full_methods(services)), [code.name for code in grpc.StatusCode], reasons()
    )
    pools = CallPools(limits)
    wall = WallClock()
    pipeline = Pipeline(
        Authenticator([TRUST_DOMAIN], wall, tokens=tokens),
        FairShare(pools.unary, share, *at_once),
        metrics,
        rates=rates,
    )
    health = HealthServicer()
    server = RpcServer(
        "127.0.0.1:0",
        ReloadingCredentials(files, metrics).grpc,
        services,
        pipeline,
        health,
        pools,
        limits,
        TokenPort(
            "127.0.0.1:0", ReloadingCredentials(files, metrics, ask_for_certificate=False).grpc
        )
        if tokens is not None
        else None,
    )
    server.bind()
    server.start()
    try:
        yield RunningServer(
            authority,
            server.port,
            metrics,
            wall,
            pools,
            folder / "tls",
            log,
            health,
            server,
        )
    finally:
        server.stop(0.2)
        written("log of a server in this process", log.getvalue())
        written("metrics of a server in this process", generate_latest(metrics.registry))


@dataclass(frozen=True)
class Refusal:
    """How a call failed, as a client sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    violations: list[tuple[str, str]]
    retry_after_s: float | None


def refusal(error: grpc.RpcError) -> Refusal:
    """Code and details of a failed call; grpc's own errors have no details, so no reason."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    details: dict[str, Message] = {}
    for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
        for packed in status.details if status is not None else ():
            detail = getattr(error_details_pb2, kind)()
            if packed.Unpack(detail):
                details[kind] = detail
    info: Any = details.get("ErrorInfo")
    bad: Any = details.get("BadRequest")
    retry: Any = details.get("RetryInfo")
    trailing = error.trailing_metadata() or ()
    written("an answer that refuses", f"{error.details()} {tuple(trailing)} {details}")
    return Refusal(
        error.code(),
        error.details() or "",
        info.reason if info else "",
        dict(info.metadata) if info else {},
        [(item.field, item.description) for item in bad.field_violations] if bad else [],
        retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )
