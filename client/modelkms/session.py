"""Calls to the service: deadlines, bounded retries, and errors of ours instead of gRPC's."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from modelkms_api.v1.access_service_pb2_grpc import AccessServiceStub
from modelkms_api.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from modelkms_api.v1.key_service_pb2 import CheckLeasesRequest
from modelkms_api.v1.key_service_pb2_grpc import KeyServiceStub
from modelkms_api.v1.master_key_service_pb2_grpc import MasterKeyServiceStub
from modelkms_api.v1.model_service_pb2_grpc import ModelServiceStub
from modelkms_api.v1.policy_service_pb2_grpc import PolicyServiceStub

from modelkms.channel import MAX_MESSAGE_BYTES, open_channel, why_unreachable
from modelkms.errors import (
    ModelKmsError,
    ProfileInvalid,
    RequestTooLarge,
    ServiceUnavailable,
    TokenInvalid,
)
from modelkms.identity import ClientIdentity, signature
from modelkms.keeper import LeaseKeeper
from modelkms.key_transport import KeyTransport
from modelkms.profile import Profile
from modelkms.rpc_errors import from_rpc_error, is_bare
from modelkms.watching import LeaseWatcher

_log = logging.getLogger("modelkms")

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

DEADLINE_S = 30.0
"""Of one call with all its retries."""
ATTEMPTS = 4
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_LOOK_EVERY_S = 1.0
"""How often files of the identity are looked at."""

_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Session:
    """One channel and what belongs to it. Safe to use from several threads."""

    def __init__(
        self,
        profile: Profile,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Raises:
            CredentialMissing, CredentialInvalid, ProfileInvalid: a file cannot be used.
        """
        self.profile = profile
        self._seen = signature(profile)
        self.identity = ClientIdentity.load(profile)
        self.keys = KeyTransport()
        self.watcher = LeaseWatcher(self._open_watch, self._check_leases)
        self.keeper = LeaseKeeper(lambda: self.watcher.watch(self.keeper))
        self._sleep = sleep
        self._clock = clock
        self._closed = threading.Event()
        self._looked_s = clock()
        self._refreshing = threading.Lock()
        self._before: grpc.Channel | None = None
        self._connect()

    def _connect(self) -> None:
        self._channel = _traced(self.profile, open_channel(self.profile, self.identity))
        self.models = ModelServiceStub(self._channel)
        self.leases = KeyServiceStub(self._channel)
        self.access = AccessServiceStub(self._channel)
        self.master_keys = MasterKeyServiceStub(self._channel)
        self.artifacts = ArtifactServiceStub(self._channel)
        self.policies = PolicyServiceStub(self._channel)

    def _open_watch(self) -> grpc.Channel | None:
        """To the watch port, under the certificate or token of now."""
        profile = self.profile
        if profile.watch_endpoint is None:
            return None
        at_watch = profile.model_copy(update={"endpoint": profile.watch_endpoint})
        return open_channel(at_watch, self.identity)

    def _check_leases(self, names: list[str]) -> Iterable[str]:
        request = CheckLeasesRequest(leases=names)
        return self.call(self.leases.CheckLeases, request).ended

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        idempotent: bool = True,
        deadline_s: float = DEADLINE_S,
    ) -> Response:
        """One unary call.

        An outage (UNAVAILABLE), or a limit whose answer says when to come back, is retried if the
        call is idempotent: at most three times, with growing pauses and jitter, and not past the
        deadline.

        Raises:
            ModelKmsError: of the reason that the service gave; a bare UNAVAILABLE is looked into.
        """
        self.refresh_identity()
        if request.ByteSize() > MAX_MESSAGE_BYTES:
            raise RequestTooLarge(
                f"the request has {request.ByteSize():,} bytes, more than {MAX_MESSAGE_BYTES:,}"
            )
        end = self._clock() + deadline_s
        for attempt in range(1, ATTEMPTS + 1):
            self._require_open()
            self._require_token()
            try:
                return method(request, timeout=max(end - self._clock(), 0.001))
            except grpc.RpcError as error:
                told = self.explain(error)
                if isinstance(told, TokenInvalid) and self.identity.tokens is not None:
                    self.identity.tokens.forget()
                pause_s = self.pause_s(attempt, told)
                last = attempt == ATTEMPTS or self._clock() + pause_s >= end
                if last or not idempotent or not may_retry(error, told):
                    raise told from None
                _log.info("retrying after %s in %.2f s", told.reason, pause_s)
                self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def explain(self, error: grpc.RpcError) -> ModelKmsError:
        """Our error for a failed call."""
        if error.code() is grpc.StatusCode.UNAVAILABLE and is_bare(error):
            # gRPC says the same for a closed port, a foreign CA and a missing certificate.
            return why_unreachable(self.profile, self.identity)
        return from_rpc_error(error)

    def pause_s(self, attempt: int, error: ModelKmsError) -> float:
        """How long to wait before the next attempt: full jitter, at least what the service says."""
        ceiling = min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
        return (error.retry_after_s or 0.0) + random.uniform(ceiling / 2, ceiling)  # noqa: S311

    def pause(self, seconds: float) -> None:
        self._sleep(seconds)

    def close(self) -> None:
        """Close the channel. Idempotent."""
        self._closed.set()
        self.keeper.close()
        self.watcher.close()
        self.keys.forget()
        with self._refreshing:
            self._channel.close()
            if self._before is not None:
                self._before.close()

    def refresh_identity(self) -> None:
        """Go on with new files where CA, certificate or key were replaced (SPIFFE agents do so
        long before the end). Files that cannot be used yet, half replaced, change nothing: they
        are looked at again. Running calls end on the connection that they began on."""
        if self._clock() - self._looked_s < _LOOK_EVERY_S or not self._refreshing.acquire(False):
            return
        try:
            self._looked_s = self._clock()
            seen = signature(self.profile)
            if seen is None or seen == self._seen or self._closed.is_set():
                return
            try:
                identity = ClientIdentity.load(self.profile)
            except ModelKmsError as error:
                _log.warning("the replaced files are not used yet: %s", error)
                return
            self._seen = seen
            self.identity = replace(
                identity, tokens=self.identity.tokens, own_instance=self.identity.own_instance
            )
            older, self._before = self._before, self._channel
            self._connect()
            if older is not None:
                older.close()
            _log.info("went on with replaced certificate files")
        finally:
            self._refreshing.release()

    def _require_token(self) -> None:
        """
        Raises:
            CredentialMissing, CredentialInvalid: a token is to be had, and cannot.
        """
        if self.identity.tokens is not None:
            self.identity.tokens.current()

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise ServiceUnavailable(
                "the client is closed", reason="CLIENT_CLOSED", hint="connect again"
            )


def may_retry(error: grpc.RpcError, told: ModelKmsError) -> bool:
    """Whether the same call may succeed a moment later.

    An outage may end. What the handshake probe found to be a matter of identity will not. A full
    quota is retried only where the service says when (grpcio's own RESOURCE_EXHAUSTED, a message
    too large, says nothing: F26).
    """
    if error.code() not in _RETRIED or told.exit_code != ServiceUnavailable.exit_code:
        return False
    return error.code() is grpc.StatusCode.UNAVAILABLE or told.retry_after_s is not None


def _traced(profile: Profile, channel: grpc.Channel) -> grpc.Channel:
    if not profile.tracing:
        return channel
    try:
        from modelkms.tracing import TracingInterceptor
    except ModuleNotFoundError as error:
        raise ProfileInvalid(
            f"tracing needs {error.name}", hint="pip install 'modelkms[tracing]'"
        ) from error
    return grpc.intercept_channel(channel, TracingInterceptor())
