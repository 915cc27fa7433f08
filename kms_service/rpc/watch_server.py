"""The port of `WatchLeases`: an asyncio server in a thread of its own, so that ten thousand idle
watchers hold no thread of those that issue keys (F31).

Revocations are read from the database, in the order of their numbers, so that a watcher on any
replica hears of what was done on another.
"""

from __future__ import annotations

import kms_service.rpc.tls_environment  # noqa: F401 - before anything imports grpc

# isort: split
import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio
from modelkms_api.v1 import watch_service_pb2 as pb

from kms_service.domain.errors import ServiceError
from kms_service.domain.identity import Principal
from kms_service.domain.names import LeaseName
from kms_service.domain.ports import Database
from kms_service.rpc import conversion
from kms_service.rpc.authentication import Authenticator
from kms_service.rpc.error_table import INTERNAL_REASON, internal_status, to_grpc_status
from kms_service.rpc.lease_watches import LeaseWatches
from kms_service.rpc.server import TokenPort
from kms_service.telemetry.listening import cannot_listen
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics import Metrics
from kms_service.usecases.own_leases import OwnLeases

_log = get_logger(__name__)

T = TypeVar("T")

SERVICE = pb.DESCRIPTOR.services_by_name["WatchService"]
METHOD = f"/{SERVICE.full_name}/WatchLeases"
_FEED_EVERY_S = 0.2
_FEED_AT_ONCE = 1000
_STALE_AFTER_S = 3.0
"""Heartbeats say that ends are told in time: without a look at the database there are none."""
_WRITE_WITHIN_S = 20.0
_STOPPED_WITHIN_S = 5.0
_MAX_REQUEST_BYTES = 256 * 1024
_MAX_METADATA_BYTES = 8 * 1024
_MAX_STREAMS_PER_CONNECTION = 128
_MAX_UNSEEN_STREAMS = 100_000
"""Opened and not yet taken by the loop. Beyond 1,000, its default, grpc cancels some at random,
and all beyond 3,000 (`grpc.server.max_pending_requests`): watchers who all come back at once after
a restart would read CANCELLED where `WatchLimits.streams` has room for them, or a reason to tell.
They are bounded all the same: 128 a connection, and the process's open files."""

_Context = grpc.aio.ServicerContext[pb.WatchLeasesRequest, pb.WatchLeasesResponse]


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How much of it.

    Attributes:
        streams: at once.
        streams_of_principal: of one principal.
        streams_of_instance: of one TLS key, or other instance, of a principal.
        heartbeat_s: each stream has a message at least this often.
        max_connection_age_s, max_connection_age_grace_s: as `ServerLimits` has them: a stream
            ends, and its client opens another under the certificate that it has by then.
    """

    streams: int = 20_000
    streams_of_principal: int = 15_000
    streams_of_instance: int = 16
    heartbeat_s: float = 15.0
    max_connection_age_s: float = 1800.0
    max_connection_age_grace_s: float = 30.0


class WatchServer:
    """Args:
    listen: `host:port`; port 0 lets the system choose.
    """

    def __init__(
        self,
        listen: str,
        credentials: grpc.ServerCredentials,
        authenticator: Authenticator,
        own_leases: OwnLeases,
        database: Database,
        metrics: Metrics,
        limits: WatchLimits,
        token_port: TokenPort | None = None,
        *,
        shared_port: bool = False,
    ) -> None:
        """`shared_port`: other processes of this user listen on it too (SO_REUSEPORT)."""
        self._token = token_port
        self._shared_port = shared_port
        self._listen = listen
        self._credentials = credentials
        self._authenticator = authenticator
        self._own_leases = own_leases
        self._database = database
        self._metrics = metrics.method(METHOD)
        self._limits = limits
        self._watches = LeaseWatches(
            limits.streams, limits.streams_of_principal, limits.streams_of_instance
        )
        self._fed_s = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="watches", daemon=True)
        self._server: grpc.aio.Server | None = None
        self._feeding: asyncio.Task[None] | None = None
        self.port = 0
        self.token_port = 0

    def __len__(self) -> int:
        """How many watch."""
        return len(self._watches)

    def start(self) -> None:
        """Listen and answer.

        Raises:
            ConfigurationError: the port cannot be listened on.
        """
        self._thread.start()
        try:
            self._in_loop(self._start()).result()
        except Exception:
            self.stop(0)
            raise

    def stop(self, grace_s: float) -> None:
        """Streams end; clients watch elsewhere. Idempotent."""
        if not self._thread.is_alive():
            return
        self._in_loop(self._stop(grace_s)).result(grace_s + 10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _in_loop(self, work: object) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)  # type: ignore[arg-type]  # coroutines of ours

    async def _start(self) -> None:
        server = grpc.aio.server(options=self._options())
        handler = grpc.unary_stream_rpc_method_handler(
            self._watch_leases,
            request_deserializer=pb.WatchLeasesRequest.FromString,
            response_serializer=pb.WatchLeasesResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, {"WatchLeases": handler}),)
        )
        self.port = _bind(server, "watch.listen", self._listen, self._credentials)
        if self._token is not None:
            self.token_port = _bind(
                server, "watch.token_listen", self._token.listen, self._token.credentials
            )
        self._server = server
        last = await self._read(self._last_revocation)
        self._feeding = asyncio.create_task(self._feed(last))
        await server.start()

    async def _stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
        if self._feeding is not None:
            self._feeding.cancel()
        # grpc says that it has stopped before its calls' coroutines have ended: those that the loop
        # leaves unfinished are told by Python on standard error, as GeneratorExit.
        if calls := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(calls, timeout=_STOPPED_WITHIN_S)
        await self._loop.shutdown_asyncgens()

    # --- one stream ------------------------------------------------------------------------------

    async def _watch_leases(self, request: pb.WatchLeasesRequest, context: _Context) -> None:
        began, code, reason = time.perf_counter(), "CANCELLED", ""
        self._metrics.in_flight.inc()
        try:
            async with aclosing(self._answers(request, context)) as answers:
                async for answer in answers:
                    # Who does not read is let go (F30): its next stream tells all.
                    await asyncio.wait_for(context.write(answer), _WRITE_WITHIN_S)
        except TimeoutError:
            code = "DEADLINE_EXCEEDED"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the stream is not read")
        except ServiceError as error:
            status = to_grpc_status(error)
            code, reason = status.code.name, error.reason
            await context.abort(status.code, status.details, status.trailing_metadata)
        except Exception:
            code, reason = "INTERNAL", INTERNAL_REASON
            status = internal_status("")
            _log.exception("watch_failed")
            await context.abort(status.code, status.details, status.trailing_metadata)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.observe(code, reason, time.perf_counter() - began)

    async def _answers(
        self, request: pb.WatchLeasesRequest, context: _Context
    ) -> AsyncGenerator[pb.WatchLeasesResponse, None]:
        principal = await self._identity(context)
        names = conversion.lease_names(request.leases)
        # Registered first and looked up then: what ends in between is told twice rather than never.
        watch = self._watches.add(principal, names)
        try:
            ended = await self._read(lambda: self._own_leases.ended(principal, names))
            sequence = 1
            yield self._message(sequence, ended)
            while True:
                ended = await watch.wait(self._limits.heartbeat_s * random.uniform(0.8, 1.0))  # noqa: S311
                if not ended and time.monotonic() - self._fed_s > _STALE_AFTER_S:
                    continue
                sequence += 1
                yield self._message(sequence, ended)
        finally:
            self._watches.remove(watch)

    async def _identity(self, context: _Context) -> Principal:
        """
        Raises:
            Unauthenticated, IdentityProviderUnavailable.
        """
        metadata: Any = context.invocation_metadata() or ()
        authenticate = partial(self._authenticator.authenticate, context.auth_context(), metadata)
        if any(key == "authorization" for key, _ in metadata):
            # Its issuer may have to be asked for a key.
            return await self._read(authenticate)
        return authenticate()

    def _message(self, sequence: int, ended: list[LeaseName]) -> pb.WatchLeasesResponse:
        return pb.WatchLeasesResponse(
            sequence=sequence,
            ended=map(str, ended),
            heartbeat_interval=conversion.duration(timedelta(seconds=self._limits.heartbeat_s)),
        )

    # --- the feed --------------------------------------------------------------------------------

    async def _feed(self, last: int) -> None:
        while True:
            await asyncio.sleep(_FEED_EVERY_S)
            try:
                last = await self._feed_after(last)
            except ServiceError as error:
                _log.warning("watch_feed_failed", reason=error.reason)
            except Exception:
                _log.exception("watch_feed_failed")
            else:
                self._fed_s = time.monotonic()

    async def _feed_after(self, last: int) -> int:
        """Tell what was revoked after `last`; up to which number all has been told."""
        now = await self._read(self._last_revocation)
        while last < now:
            revoked = await self._read(partial(self._revoked_after, last))
            for _, lease in revoked:
                self._watches.ended(lease)
            seen = revoked[-1][0] if revoked else 0
            if len(revoked) < _FEED_AT_ONCE:
                # All there was when it was read, which was after `now`.
                return max(now, seen)
            last = seen
        return last

    def _last_revocation(self) -> int:
        with self._database.read() as tx:
            return tx.leases.last_revocation()

    def _revoked_after(self, last: int) -> list[tuple[int, LeaseName]]:
        with self._database.read() as tx:
            found = tx.leases.revoked_after(last, _FEED_AT_ONCE)
            return [(each.revocation, each.lease) for each in found]

    async def _read(self, work: Callable[[], T]) -> T:
        """In a thread: the database may take its time, and streams must not wait for it."""
        return await self._loop.run_in_executor(None, work)

    def _options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.so_reuseport", int(self._shared_port)),
            ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
            ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
            ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
            ("grpc.server.max_pending_requests", _MAX_UNSEEN_STREAMS),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_UNSEEN_STREAMS),
            ("grpc.max_connection_age_ms", int(limits.max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", int(limits.max_connection_age_grace_s * 1000)),
            ("grpc.server_handshake_timeout_ms", 5000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
        ]


def _bind(
    server: grpc.aio.Server, setting: str, listen: str, credentials: grpc.ServerCredentials
) -> int:
    """
    Raises:
        ConfigurationError: it cannot be listened on.
    """
    try:
        return server.add_secure_port(listen, credentials)
    except (OSError, RuntimeError) as error:
        raise cannot_listen(setting, listen, error) from error
