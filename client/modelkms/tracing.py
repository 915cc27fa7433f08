"""OpenTelemetry traces of the calls to the service: off unless the profile says `tracing = true`.

The host process decides what becomes of spans (its tracer provider and exporters); here they are
only begun and ended, and their context is handed to the service as `traceparent`. A span names the
method and how it ended: no model, no key, no token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from modelkms import __version__


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class TracingInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """A span of each call."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("modelkms", __version__)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._call(continuation, details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._call(continuation, details, request)

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._call(continuation, details, requests)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._call(continuation, details, requests)

    def _call(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        service, _, name = details.method.removeprefix("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        headers: dict[str, str] = {}
        inject(headers, set_span_in_context(span))
        traced = _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *headers.items()),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

        def ended(call: Any) -> None:
            code = call.code()
            span.set_attribute("rpc.grpc.status_code", code.name)
            if code is not grpc.StatusCode.OK:
                span.set_status(StatusCode.ERROR)
            span.end()

        try:
            call = continuation(traced, request)
        except BaseException:
            span.set_status(StatusCode.ERROR)
            span.end()
            raise
        call.add_done_callback(ended)
        return call
