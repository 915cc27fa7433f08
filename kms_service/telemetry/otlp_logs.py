"""Audit records to an OpenTelemetry collector, by OTLP over HTTP. Needs the extra `tracing`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from kms_service import __version__
from kms_service.telemetry.opentelemetry import Collector, collector_session, without_environment

_TIMEOUT_S = 30.0
"""For how long, at most, the exporter tries a batch again, while more gather behind it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class OtlpLines:
    """Implements `adapters.audit_stream.ByteStream`: each line becomes one log record, whose body
    is the line as it stands in the file, so that a collector's copy can be verified as well.

    Raises:
        ConfigurationError: the collector's file of headers cannot be used.
    """

    def __init__(self, collector: Collector) -> None:
        headers = collector.headers()
        with without_environment():
            self._exporter = OTLPLogExporter(
                endpoint=collector.endpoint,
                certificate_file=str(collector.ca_file) if collector.ca_file is not None else None,
                headers=headers,
                session=collector_session(),
                timeout=_TIMEOUT_S,
            )
        self._resource = Resource({"service.name": "modelkms", "service.version": __version__})

    def write(self, data: bytes) -> None:
        """Send whole lines; returns once the collector has them.

        Raises:
            OSError: it has not, within half a minute, or refuses them.
        """
        batch = [self._record(line) for line in data.splitlines()]
        if self._exporter.export(batch) is not LogRecordExportResult.SUCCESS:
            raise OSError("the collector did not take the records")

    def flush(self) -> None: ...

    def _record(self, line: bytes) -> ReadableLogRecord:
        record = json.loads(line)
        at = (datetime.fromisoformat(record["time"]) - _EPOCH) // _MICROSECOND * 1000
        return ReadableLogRecord(
            LogRecord(
                timestamp=at,
                observed_timestamp=at,
                context=Context(),
                severity_number=SeverityNumber.INFO,
                event_name=f"modelkms.audit.{record['event']}",
                body=line.decode(),
                attributes={
                    "modelkms.audit.chain": record["chain"],
                    "modelkms.audit.sequence": record["sequence"],
                    "modelkms.audit.outcome": record["outcome"],
                    "modelkms.trace_id": record["trace_id"],
                },
            ),
            self._resource,
        )
