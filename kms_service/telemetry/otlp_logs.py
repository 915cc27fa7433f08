"""Audit records to an OpenTelemetry collector, by OTLP over HTTP. Needs the extra `tracing`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from kms_service import __version__
from kms_service.telemetry.opentelemetry import collector_session

_TIMEOUT_S = 30.0
"""For how long, at most, the exporter tries a batch again, while more gather behind it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class OtlpLines:
    """Implements `adapters.audit_stream.ByteStream`: each line becomes one log record, whose body
    is the line as it stands in the file, so that a collector's copy can be verified as well.

    Args:
        endpoint: such as `https://collector:4318/v1/logs`.
        ca_file: PEM bundle that the collector's certificate is checked against.
    """

    def __init__(self, endpoint: str, ca_file: Path | None = None) -> None:
        self._exporter = OTLPLogExporter(
            endpoint=endpoint,
            session=collector_session(),
            certificate_file=str(ca_file) if ca_file is not None else None,
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
