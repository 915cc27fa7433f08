"""Traces by OpenTelemetry, sent by OTLP over HTTP. Needs the extra `tracing`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kms_service import __version__
from kms_service.domain.errors import ConfigurationError
from kms_service.telemetry.tracing import TRACEPARENT, CallSpan, Metadata, traceparent

_PROPAGATOR = TraceContextTextMapPropagator()
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+", re.ASCII)
_FLUSH_MS = 2000


@dataclass(frozen=True, slots=True)
class Collector:
    """Where an exporter sends, by OTLP over HTTP.

    Attributes:
        endpoint: of one signal, such as `https://collector:4318/v1/traces`.
        ca_file: PEM bundle that its certificate is checked against; None: the system's.
        headers_file: `Name: value` in each line, such as a credential of the collector's; read at
            the start.
    """

    endpoint: str
    ca_file: Path | None = None
    headers_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """
        Raises:
            ConfigurationError: the file cannot be read, or a line is no header.
        """
        if self.headers_file is None:
            return {}
        try:
            lines = [line for line in self.headers_file.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.headers_file}: cannot be read") from error
        headers = {}
        for number, line in enumerate(lines, 1):
            name, colon, value = line.partition(":")
            if not colon or _HEADER_NAME.fullmatch(name) is None:
                raise ConfigurationError(  # not the line itself: it may be the secret
                    f"{self.headers_file}: line {number} is not `Name: value`"
                )
            headers[name] = value.strip()
        return headers


def otlp(collector: Collector, sample_ratio: float) -> OpenTelemetryTracer:
    """A tracer that sends in batches, by a thread of its own: a collector that is away costs
    spans, never a call.

    Raises:
        ConfigurationError: the file of headers cannot be used.
    """
    headers = collector.headers()
    with without_environment():
        exporter = OTLPSpanExporter(
            endpoint=collector.endpoint,
            certificate_file=str(collector.ca_file) if collector.ca_file is not None else None,
            headers=headers,
            session=collector_session(),
        )
        return OpenTelemetryTracer(BatchSpanProcessor(exporter), sample_ratio)


@contextmanager
def without_environment() -> Iterator[None]:
    """Within, OpenTelemetry finds no `OTEL_…` variable: it would add headers, a client certificate
    or another CA to what is configured, drop spans or switch itself off. It reads them where an
    exporter or a provider is made, which is at the start, by one thread."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def collector_session() -> requests.Session:
    """For an exporter: neither a proxy nor a CA bundle of the environment, which would win over
    what is configured."""
    session = requests.Session()
    session.trust_env = False
    return session


class OpenTelemetryTracer:
    """Implements `telemetry.tracing.Tracer`.

    Args:
        processor: takes the spans.
        sample_ratio: of traces that begin here; a caller's own choice is kept.
    """

    def __init__(self, processor: SpanProcessor, sample_ratio: float = 1.0) -> None:
        # Not from the environment (OTEL_RESOURCE_ATTRIBUTES and others): configuration says all.
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource({"service.name": "modelkms", "service.version": __version__}),
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("kms_service", __version__)

    def call(self, method: str, metadata: Metadata) -> CallSpan:
        carrier = {TRACEPARENT: traceparent(metadata)}
        parent = _PROPAGATOR.extract({key: value for key, value in carrier.items() if value})
        service, _, name = method.removeprefix("/").partition("/")
        # Names as the semantic conventions for RPC have them.
        span = self._tracer.start_span(
            f"{service}/{name}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        return _Call(span)

    @contextmanager
    def within(self, span: CallSpan) -> Iterator[None]:
        assert isinstance(span, _Call)
        token = attach(set_span_in_context(span.span))
        try:
            yield
        finally:
            detach(token)

    @contextmanager
    def request(self, name: str) -> Iterator[Mapping[str, str]]:
        # An exception's text may hold anything: neither recorded nor made the status.
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
        ) as span:
            headers: dict[str, str] = {}
            _PROPAGATOR.inject(headers)
            try:
                yield headers
            except BaseException as error:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", type(error).__name__)
                raise

    def close(self) -> None:
        """Send what waits, for two seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class _Call:
    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def ended(self, code: str, reason: str) -> None:
        self.span.set_attribute("rpc.grpc.status_code", code)
        if reason:
            self.span.set_attribute("modelkms.reason", reason)
        if code in ("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNKNOWN"):
            self.span.set_status(StatusCode.ERROR)
        self.span.end()
