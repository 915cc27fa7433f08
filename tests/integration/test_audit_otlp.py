"""The audit log's second copy, to a collector: OTLP over HTTP, decoded by OpenTelemetry's stubs."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kms_service.adapters.audit_chain import Link, check_line, segments
from kms_service.adapters.audit_stream import AuditStream
from kms_service.config import AuditSection
from kms_service.domain.errors import ConfigurationError
from kms_service.parts import open_audit_stream
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.opentelemetry import Collector as Address
from kms_service.telemetry.otlp_logs import OtlpLines
from tests.support.audit_logs import lease_record, write_chain
from tests.support.certificates import TestAuthority
from tests.support.otlp_collector import Collector, running_collector

RECORDS = 1200


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as server:
        yield server


def eventually(ask: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ask():
        assert time.monotonic() < end
        time.sleep(0.02)


def lines(folder: Path) -> list[bytes]:
    return [line for path in segments(folder) for line in path.read_bytes().splitlines(True)]


def test_the_collectors_copy_is_the_log_and_can_be_verified(
    collector: Collector, tmp_path: Path
) -> None:
    dropped: list[int] = []
    stream = AuditStream(OtlpLines(Address(collector.endpoint("logs"))), dropped.append)
    write_chain(tmp_path / "main", map(lease_record, range(RECORDS)), tell=stream.tell)
    eventually(lambda: len(collector.records) == RECORDS)
    stream.close()
    assert dropped == []
    copies = [record.body.string_value.encode() + b"\n" for record in collector.records]
    assert copies == lines(tmp_path / "main")
    last = Link()
    for line in copies:
        last, fault = check_line(line, last)
        assert not fault
    first = collector.records[0]
    assert first.event_name == "modelkms.audit.LeaseDataKey"
    assert first.time_unix_nano == 1_794_916_800_000_000_000  # 2026-11-17 12:00:00Z
    attributes = {each.key: each.value for each in first.attributes}
    assert attributes["modelkms.audit.chain"].string_value == "main"
    assert attributes["modelkms.audit.sequence"].int_value == 1


@pytest.mark.parametrize("trusted", [True, False])
def test_a_configured_collector_is_verified(
    collector: Collector, tmp_path: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bundle that is configured, whatever the environment of the process names."""
    authority = TestAuthority("example.org")
    authority.server().write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    collector.socket = context.wrap_socket(collector.socket, server_side=True)
    other = tmp_path / "other.pem"
    other.write_bytes(TestAuthority("example.org").pem)
    ca_file, named = (tmp_path / "ca.pem", other) if trusted else (other, tmp_path / "ca.pem")
    for variable in ("REQUESTS_CA_BUNDLE", "OTEL_EXPORTER_OTLP_CERTIFICATE"):
        monkeypatch.setenv(variable, str(named))
    section = AuditSection(
        folder=tmp_path,
        stream="otlp",
        otlp_endpoint=collector.endpoint("logs").replace("http:", "https:"),
        otlp_ca_file=ca_file,
    )
    metrics = Metrics([], [], [])
    stream = open_audit_stream(section, metrics)
    assert stream is not None
    write_chain(tmp_path / "main", [lease_record(0)], tell=stream.tell)

    def dropped() -> float:
        name = "modelkms_audit_stream_dropped_total"
        return metrics.registry.get_sample_value(name) or 0.0

    eventually(lambda: len(collector.records) == trusted and dropped() == (not trusted))
    stream.close()


def test_a_collector_that_hangs_holds_up_nobody_and_what_is_left_out_is_counted(
    collector: Collector, tmp_path: Path
) -> None:
    collector.open.clear()
    dropped: list[int] = []
    stream = AuditStream(
        OtlpLines(Address(collector.endpoint("logs"))), dropped.append, capacity=10
    )
    write_chain(tmp_path / "main", [lease_record(0)], tell=stream.tell)
    assert collector.asked.wait(60)
    # The collector has answered nothing yet, and all of these become durable.
    write_chain(tmp_path / "main", map(lease_record, range(1, 31)), tell=stream.tell)
    assert len(lines(tmp_path / "main")) == 31
    assert sum(dropped) == 20
    collector.open.set()
    eventually(lambda: len(collector.records) == 11)
    stream.close()
    assert [record.body.string_value.encode() + b"\n" for record in collector.records] == (
        lines(tmp_path / "main")[:11]
    )


def test_what_a_collector_refuses_is_counted_and_the_next_are_sent(
    collector: Collector, tmp_path: Path
) -> None:
    collector.status = 400
    dropped: list[int] = []
    stream = AuditStream(OtlpLines(Address(collector.endpoint("logs"))), dropped.append)
    write_chain(tmp_path / "main", [lease_record(0)], tell=stream.tell)
    eventually(lambda: dropped == [1])
    collector.status = 200
    write_chain(tmp_path / "main", [lease_record(1)], tell=stream.tell)
    eventually(lambda: len(collector.records) == 1)
    stream.close()
    assert dropped == [1]


def test_headers_are_those_of_the_configured_file_alone(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-other=of-another-collector")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "gzip")
    (tmp_path / "headers").write_text("Authorization: Bearer a:b\n\n")
    stream = AuditStream(
        OtlpLines(Address(collector.endpoint("logs"), headers_file=tmp_path / "headers")),
        lambda _count: None,
    )
    write_chain(tmp_path / "main", [lease_record(0)], tell=stream.tell)
    eventually(lambda: len(collector.records) == 1)
    stream.close()
    (headers,) = collector.headers
    assert headers["Authorization"] == "Bearer a:b"
    assert "X-Other" not in headers
    assert "Content-Encoding" not in headers
    assert os.environ["OTEL_EXPORTER_OTLP_HEADERS"]  # the host's own stay


@pytest.mark.parametrize("text", ["no colon", ": nameless", "two words: x"])
def test_a_file_that_holds_no_headers_refuses_the_start_and_is_not_quoted(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "headers").write_text(f"Name: value\n{text}\n")
    with pytest.raises(ConfigurationError, match="line 2 is not") as caught:
        OtlpLines(Address("http://127.0.0.1:1/v1/logs", headers_file=tmp_path / "headers"))
    assert text not in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        OtlpLines(Address("http://127.0.0.1:1/v1/logs", headers_file=tmp_path / "none"))
