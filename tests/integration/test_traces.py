"""One trace across client, service and Vault, received by OTLP, and nothing secret in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import hvac
import pytest
from modelkms.profile import Profile
from modelkms.session import Session
from modelkms.tracing import TracingInterceptor
from modelkms_api.v1 import model_service_pb2, model_service_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kms_service.adapters.audit_reading import read_records
from kms_service.bootstrap import build
from kms_service.development.openbao import OpenBao
from kms_service.development.vault_setup import set_up
from tests.support.certificates import TestAuthority
from tests.support.otlp_collector import Collector, running_collector
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess

TIMEOUT_S = 20.0


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as server:
        yield server


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao.start(tmp_path_factory.mktemp("bao"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Of the host process: a program that uses the SDK and has set up OpenTelemetry."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_one_trace_leads_from_the_client_to_vault_and_into_the_audit_log(
    tmp_path: Path,
    bao: OpenBao,
    collector: Collector,
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The configuration says all: neither of these has a say.
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-other=of-another-collector")
    roles = set_up(bao, tmp_path / "roles")
    officer = hvac.Client(url=bao.address, verify=str(bao.ca_file))
    secret_id = roles.officer.secret_id_file.read_text()
    officer.auth.approle.login(roles.officer.role_id_file.read_text(), secret_id)
    officer.secrets.transit.create_key("modelkms-demo", derived=True, key_type="aes256-gcm96")
    process = ServiceProcess(
        tmp_path / "service",
        TestAuthority(TRUST_DOMAIN),
        bao.address,
        bao.ca_file,
        roles.service,
        {"TRACING__ENDPOINT": collector.endpoint("traces")},
    )
    process.migrate()
    service = build(process.config())
    service.start()
    try:
        process.grpc_port = service.grpc_port
        with process.channel("admin/anna") as plain:
            channel = grpc.intercept_channel(plain, TracingInterceptor())
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            create = model_service_pb2.CreateProjectRequest(project_id="demo")
            stub.CreateProject(create, timeout=TIMEOUT_S)
            create = model_service_pb2.CreateProjectRequest(project_id="none")
            with pytest.raises(grpc.RpcError):
                stub.CreateProject(create, timeout=TIMEOUT_S)
    finally:
        service.stop(1)  # sends what waits

    first, second = exporter.get_finished_spans()
    assert first.name == "modelkms_api.v1.ModelService/CreateProject"
    assert [dict(span.attributes or {})["rpc.grpc.status_code"] for span in (first, second)] == [
        *("OK", "FAILED_PRECONDITION"),
    ]
    assert first.context is not None
    trace_id = f"{first.context.trace_id:032x}"
    ours = [span for span in collector.spans if span.trace_id.hex() == trace_id]
    (call,) = (span for span in ours if span.name == first.name)
    assert call.parent_span_id.hex() == f"{first.context.span_id:016x}"
    to_vault = [span for span in ours if span.name == "vault transit/keys"]
    assert to_vault
    assert {span.parent_span_id for span in to_vault} == {call.span_id}

    assert all("X-Other" not in headers for headers in collector.headers)

    records = [
        record
        for record in read_records(process.folder / "audit" / "main")
        if record["event"] == "CreateProject"
    ]
    assert records[0]["trace_id"] == trace_id
    assert records[1]["trace_id"] != trace_id

    token = officer.token
    for secret in (secret_id, token, roles.service.secret_id_file.read_text(), "modelkms-demo"):
        assert secret.encode() not in collector.raw
    assert b"spiffe://" not in collector.raw


def test_the_profile_switches_the_clients_traces_on(tmp_path: Path) -> None:
    identity = TestAuthority(TRUST_DOMAIN).client("reader/a")
    identity.write(tmp_path)
    for tracing in (False, True):
        profile = Profile(
            endpoint="127.0.0.1:1",
            tracing=tracing,
            ca_file=tmp_path / "ca.pem",
            certificate_file=tmp_path / "certificate.pem",
            key_file=tmp_path / "key.pem",
        )
        session = Session(profile)
        intercepted = type(session._channel).__module__ == "grpc._interceptor"
        assert intercepted is tracing
        session.close()
