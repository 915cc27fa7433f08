"""The gRPC server: TLS 1.3 only, with client certificates or tokens; bounded in every direction."""

from __future__ import annotations

import kms_service.rpc.tls_environment

# isort: split
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from kms_service.domain.errors import ConfigurationError
from kms_service.rpc.pipeline import Pipeline
from kms_service.rpc.pool import CallPool
from kms_service.rpc.registration import Handlers, guarded_handlers, handlers_of
from kms_service.telemetry.listening import cannot_listen

MAX_MESSAGE_BYTES = 1024 * 1024 + 64 * 1024
"""An artifact chunk of 1 MiB and what surrounds it."""
MAX_METADATA_BYTES = 8 * 1024
_MAX_STREAMS_PER_CONNECTION = 128
_QUEUE_PER_THREAD = 8
_STANDARD_THREADS = 2
_HARD_LIMIT_FACTOR = 4
_HANDSHAKE_TIMEOUT_S = 5.0
_TURN_AWAY_S = 0.25
_TLS_HANDSHAKE_RECORD = b"\x16"
CIPHER_SUITES = kms_service.rpc.tls_environment.SUITES


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How much of everything.

    Attributes:
        threads: unary calls that run at once; 8 times as many may wait.
        streams: artifact streams at once; each holds a thread. None waits.
        max_connection_age_s: connections end after this, so that a client whose certificate or
            CA is no longer good must prove itself again (F08, F09).
        max_connection_age_grace_s: streams on such a connection end after this.
    """

    threads: int = 16
    streams: int = 16
    max_connection_age_s: float = 1800.0
    max_connection_age_grace_s: float = 30.0


class CallPools:
    """Where calls run: unary ones, artifact streams, and the standard services apart from both,
    so that health answers whatever else happens (F29)."""

    def __init__(self, limits: ServerLimits) -> None:
        self.unary = CallPool("rpc", limits.threads, queue=limits.threads * _QUEUE_PER_THREAD)
        self.streams = CallPool("rpc-stream", limits.streams, queue=0)
        self.standard = CallPool("rpc-standard", _STANDARD_THREADS, queue=64)

    def close(self) -> None:
        for pool in (self.unary, self.streams, self.standard):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class TokenPort:
    """A further port, for callers with a token instead of a certificate.

    Attributes:
        listen: `host:port`.
        credentials: do not ask for a certificate.
    """

    listen: str
    credentials: grpc.ServerCredentials


class RpcServer:
    """Our services, health and reflection behind an mTLS port, and a token port if there is one.

    Args:
        listen: `host:port` of the mTLS port.
        services: descriptor to servicer.
        pipeline: wraps every handler.
        health: answers `grpc.health.v1`.
        shared_ports: other processes of this user listen on the same ports (SO_REUSEPORT).
    """

    def __init__(
        self,
        listen: str,
        credentials: grpc.ServerCredentials,
        services: Mapping[ServiceDescriptor, object],
        pipeline: Pipeline,
        health: HealthServicer,
        pools: CallPools,
        limits: ServerLimits,
        token_port: TokenPort | None = None,
        *,
        shared_ports: bool = False,
    ) -> None:
        self._token = token_port
        self._pipeline = pipeline
        self._shared_ports = shared_ports
        self._listen = listen
        self._credentials = credentials
        self._pools = pools
        self._server = grpc.server(
            pools.unary,
            options=_options(limits, shared_ports),
            # A last line behind our own limits, which say when to retry.
            maximum_concurrent_rpcs=_HARD_LIMIT_FACTOR
            * (limits.threads * (1 + _QUEUE_PER_THREAD) + limits.streams),
        )
        for descriptor, servicer in services.items():
            handlers = handlers_of(descriptor, servicer, pipeline, pools.streams)
            self._register(descriptor.full_name, handlers)
        names = [descriptor.full_name for descriptor in services]
        self._register_standard(names, pipeline, health, pools.standard)
        self.port = 0
        self.token_port = 0

    def bind(self) -> None:
        """Take the ports; nothing is answered yet.

        Raises:
            ConfigurationError: an address cannot be listened on.
        """
        self.port = self._bind("server.listen", self._listen, self._credentials)
        if self._token is not None:
            self.token_port = self._bind(
                "server.token_listen", self._token.listen, self._token.credentials
            )

    def _bind(self, setting: str, listen: str, credentials: grpc.ServerCredentials) -> int:
        if not self._shared_ports:
            _refuse_port_in_use(setting, listen)
        try:
            return self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise cannot_listen(setting, listen, error) from error

    def start(self) -> None:
        """Answer.

        Raises:
            ConfigurationError: TLS 1.2 would be accepted.
        """
        self._server.start()
        ports = [(self._listen, self.port)]
        if self._token is not None:
            ports.append((self._token.listen, self.token_port))
        if any(_accepts_tls_1_2(listen, port) for listen, port in ports):
            self._server.stop(0)
            raise ConfigurationError(
                "server: TLS 1.2 would be accepted, since grpc was used in this process before "
                f"{kms_service.rpc.tls_environment.VARIABLE} was set; start modelkms-server instead"
            )

    def stop(self, grace_s: float) -> bool:
        """Refuse new calls at once, let running ones end within `grace_s`, cancel the rest.

        Returns:
            True if all calls ended by themselves.
        """
        # What reaches grpc while it stops, and no thread of ours yet, is told CANCELLED. So that an
        # outage reads as one (F64), callers are turned away by ourselves first, for a moment.
        self._pipeline.refuse_new_calls()
        time.sleep(min(_TURN_AWAY_S, grace_s))
        stopping = self._server.stop(grace_s)
        ended = stopping.wait(grace_s)
        stopping.wait()
        self._pools.close()
        return ended

    def _register(self, service: str, handlers: Handlers) -> None:
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self._server.add_registered_method_handlers(service, handlers)

    def _register_standard(
        self, names: list[str], pipeline: Pipeline, health: HealthServicer, pool: ThreadPoolExecutor
    ) -> None:
        self._register(
            *guarded_handlers(health_pb2_grpc.add_HealthServicer_to_server, health, pipeline, pool)
        )
        shown = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        self._register(
            *guarded_handlers(
                reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
                reflection.ReflectionServicer((*shown, reflection.SERVICE_NAME)),
                pipeline,
                pool,
            )
        )


def _refuse_port_in_use(setting: str, listen: str) -> None:
    """grpc's own error says only that it failed; a plain bind says why."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except (OSError, OverflowError) as error:
        raise cannot_listen(setting, listen, error) from error


def _options(limits: ServerLimits, shared_ports: bool) -> list[tuple[str, int]]:
    return [
        # Else a second server of the same user could share the port unnoticed.
        ("grpc.so_reuseport", int(shared_ports)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        ("grpc.max_connection_age_ms", int(limits.max_connection_age_s * 1000)),
        # grpc's default is without end: streams would outlive their certificates (F09).
        ("grpc.max_connection_age_grace_ms", int(limits.max_connection_age_grace_s * 1000)),
        ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE_TIMEOUT_S * 1000)),
        # A peer that vanished without a word is noticed (F30).
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _accepts_tls_1_2(listen: str, port: int) -> bool:
    """Try it, rather than trust that the environment was set in time.

    We have no client certificate, so a whole handshake would fail in any case. What tells is the
    server's first record: a ServerHello (type 22), or an alert or nothing.
    """
    host = listen.rpartition(":")[0].strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent or believed
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    answer, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(answer, hello).do_handshake()
    try:
        with socket.create_connection((host, port), timeout=_HANDSHAKE_TIMEOUT_S) as connection:
            connection.sendall(hello.read())
            return connection.recv(1) == _TLS_HANDSHAKE_RECORD
    except OSError:
        return False
