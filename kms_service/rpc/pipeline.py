"""What every call passes through: refusal when overloaded, identity, fair share, errors, metrics.

Handlers are wrapped once, at registration, instead of by `grpc.ServerInterceptor`, which rebuilds
them at every call (0.86 of the speed, DESIGN §6). Only this module ends calls with an error.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Never, ParamSpec, TypeVar

import grpc

from kms_service.domain.errors import (
    Corrupt,
    DeadlineExceeded,
    ServiceError,
    ServiceStopping,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from kms_service.domain.identity import Caller
from kms_service.rpc.authentication import Authenticator
from kms_service.rpc.error_table import (
    INTERNAL_REASON,
    internal_status,
    status_code,
    to_grpc_status,
)
from kms_service.rpc.pool import FairShare, refuse_if_overloaded
from kms_service.rpc.rates import Rates
from kms_service.rpc.stalls import StallWatch
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics import MethodMetrics, Metrics
from kms_service.telemetry.tracing import CallSpan, NoTracer, Tracer

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
P = ParamSpec("P")

_log = get_logger(__name__)

_SDK = re.compile(r"modelkms/([0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}[!-~]{0,64})(?: |$)", re.ASCII)


class Pipeline:
    """Wraps the behaviour of each method for grpc.

    Args:
        authenticator: finds out who calls.
        fair_share: bounds what one identity runs at once.
        metrics: counts.
        tracer: makes a span of each call.
        rates: bounds how often an identity may call.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        fair_share: FairShare,
        metrics: Metrics,
        tracer: Tracer | None = None,
        rates: Rates | None = None,
    ) -> None:
        self._rates = rates
        self._authenticator = authenticator
        self._fair_share = fair_share
        self._metrics = metrics
        self._tracer = tracer or NoTracer()
        self._stopping = False
        self._stalls = StallWatch()

    def refuse_new_calls(self) -> None:
        """From now on ServiceStopping answers whatever comes, but health."""
        self._stopping = True

    def one_answer(
        self, method: str, behaviour: Callable[[Asked, Call], Answer]
    ) -> Callable[[Asked, grpc.ServicerContext], Answer]:
        """For methods with one answer to one request."""
        metrics = self._metrics.method(method)

        def handle(request: Asked, context: grpc.ServicerContext) -> Answer:
            call = self._begin(method, context, metrics)
            try:
                self._admit(call)
                with (
                    self._fair_share.turn(call.caller.principal),
                    self._tracer.within(call.span),
                ):
                    answer = behaviour(request, call)
                call.check()
                call.succeeded()
            except Exception as error:
                call.fail(error)
            return answer

        return handle

    def one_answer_to_many(
        self, method: str, behaviour: Callable[[Iterator[Asked], Call], Answer]
    ) -> Callable[[Iterator[Asked], grpc.ServicerContext], Answer]:
        """For methods with one answer to a stream of requests."""
        handle_one = self.one_answer(method, behaviour)

        def handle(requests: Iterator[Asked], context: grpc.ServicerContext) -> Answer:
            with self._stalls.stream(context) as stream:
                return handle_one(stream.taken(requests), context)

        return handle

    def many_answers(
        self, method: str, behaviour: Callable[[Asked, Call], Iterator[Answer]]
    ) -> Callable[[Asked, grpc.ServicerContext], Iterator[Answer]]:
        """For methods that answer with a stream."""
        metrics = self._metrics.method(method)

        def handle(request: Asked, context: grpc.ServicerContext) -> Iterator[Answer]:
            call = self._begin(method, context, metrics)
            try:
                self._admit(call)
                with (
                    self._fair_share.turn(call.caller.principal),
                    self._stalls.stream(context) as stream,
                ):
                    yield from stream.given(behaviour(request, call))
                call.succeeded()
            except GeneratorExit:  # the client went away: grpc drops this generator
                call.ended("CANCELLED", "")
                raise
            except Exception as error:
                call.fail(error)

        return handle

    def guarded(self, method: str, behaviour: Callable[P, Answer]) -> Callable[P, Answer]:
        """For the standard services (health, reflection): any identity of ours may ask them,
        and their answers are grpc's own."""
        metrics = self._metrics.method(method)

        def handle(*args: P.args, **kwargs: P.kwargs) -> Answer:
            context = args[1]
            assert isinstance(context, grpc.ServicerContext)
            call = self._begin(method, context, metrics)
            try:
                self._admit(call, limited=False)  # health answers whatever else happens
                call.succeeded()
            except Exception as error:
                call.fail(error)
            return behaviour(*args, **kwargs)

        return handle

    def _begin(self, method: str, context: grpc.ServicerContext, metrics: MethodMetrics) -> Call:
        span = self._tracer.call(method, context.invocation_metadata() or ())
        return Call(method, context, metrics, span, lambda: self._stopping)

    def _admit(self, call: Call, *, limited: bool = True) -> None:
        if self._stopping and limited:
            raise ServiceStopping
        refuse_if_overloaded()
        context = call.context
        metadata = context.invocation_metadata()
        principal = self._authenticator.authenticate(
            context.auth_context(),  # type: ignore[arg-type]  # the stub has the value type wrong
            metadata,
        )
        call.admitted(
            Caller(
                principal,
                call.id,
                context.peer(),
                call.method,
                client_version(metadata),
                call.span.trace_id,
            )
        )
        if limited and self._rates is not None:
            self._rates.take(principal)
        call.check()


class Call:
    """One call: who asks, whether anybody still waits, and how it ends, told once to grpc,
    metrics and log. Servicers see `caller`, and hand it on as the `Liveness` of use cases."""

    def __init__(
        self,
        method: str,
        context: grpc.ServicerContext,
        metrics: MethodMetrics,
        span: CallSpan,
        stopping: Callable[[], bool],
    ) -> None:
        self._stopping = stopping
        self.span = span
        self.id = os.urandom(16).hex()
        self.method = method
        self.context = context
        self._caller: Caller | None = None
        self._metrics = metrics
        self._ended = False
        self._started = time.perf_counter()
        metrics.in_flight.inc()

    @property
    def caller(self) -> Caller:
        """Known once the call was admitted."""
        assert self._caller is not None
        return self._caller

    def admitted(self, caller: Caller) -> None:
        self._caller = caller

    def check(self) -> None:
        """
        Raises:
            DeadlineExceeded: the deadline is over, or the client went away (F28).
        """
        if not self.context.is_active():
            raise DeadlineExceeded

    def check_wanted_here(self) -> None:
        """For who only watches: as well done at another replica, once this one is to stop.

        Raises:
            DeadlineExceeded: as `check`.
            ServiceStopping: it holds up no shutdown (F64).
        """
        self.check()
        if self._stopping():
            raise ServiceStopping

    def succeeded(self) -> None:
        self.ended("OK", "")
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("rpc_finished", **self._fields())

    def fail(self, error: Exception) -> Never:
        """Ends the call with what the error table says."""
        if isinstance(error, grpc.RpcError):
            # Reading the request stream failed: the client went away. grpc knows it already.
            self.ended("CANCELLED", "")
            raise error
        status = internal_status(self.id)
        try:
            status = self._told(error)
        finally:
            # Even if telling fails: what escapes from here, grpc would send with its text.
            self.context.abort_with_status(status)

    def _told(self, error: Exception) -> grpc.Status:
        if isinstance(error, ServiceError):
            return self._declared(error)
        self.ended("INTERNAL", INTERNAL_REASON)
        _log.error("rpc_internal_error", exc_info=error, **self._fields())
        return internal_status(self.id)

    def ended(self, code: str, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._metrics.in_flight.dec()
        self._metrics.observe(code, reason, time.perf_counter() - self._started)
        self.span.ended(code, reason)

    def _declared(self, error: ServiceError) -> grpc.Status:
        code = status_code(type(error))
        if code is grpc.StatusCode.INTERNAL:
            self.ended("INTERNAL", INTERNAL_REASON)
            _log.error("rpc_internal_error", exc_info=error, **self._fields())
            return internal_status(self.id)
        self.ended(code.name, error.reason)
        fields = {**self._fields(), "code": code.name, "reason": error.reason}
        if isinstance(error, Unavailable | Corrupt):
            cause = error.__cause__
            _log.warning("rpc_failed", cause=type(cause).__name__ if cause else "", **fields)
        elif isinstance(error, Throttled):
            _log.debug("rpc_throttled", **fields)  # a flood must not flood the log: it is counted
        elif isinstance(error, Unauthenticated):
            _log.info("rpc_unauthenticated", **fields)
        else:
            _log.info("rpc_refused", **fields, **_prefixed(error.metadata))
        return to_grpc_status(error)

    def _fields(self) -> dict[str, str]:
        fields = {"method": self.method, "request_id": self.id, "peer": self.context.peer()}
        if self._caller is not None:
            fields["principal"] = self._caller.principal.id
            if self._caller.trace_id:
                fields["trace_id"] = self._caller.trace_id
        return fields


def client_version(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Of our SDK, by what it says of itself (`modelkms/0.1.0 grpc-python/…`); else empty."""
    for key, value in metadata:
        if key == "user-agent" and isinstance(value, str):
            match = _SDK.match(value)
            return match[1] if match else ""
    return ""


def _prefixed(metadata: dict[str, str]) -> dict[str, str]:
    return {f"error_{key}": value for key, value in metadata.items()}
