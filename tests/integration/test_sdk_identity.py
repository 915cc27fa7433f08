"""What the SDK says when TLS or the service does not take it: F01, F03, F04, F06, F08, F11."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from modelkms import catalogue
from modelkms.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    ModelKmsError,
    ProfileInvalid,
    ServerNotTrusted,
    ServiceUnavailable,
    SpiffeIdInvalid,
    TrustDomainUnknown,
    VaultSealed,
)
from modelkms.profile import Profile
from modelkms.session import ATTEMPTS, Session
from modelkms_api.v1 import model_service_pb2, resources_pb2

from kms_service.domain import errors as service_errors
from kms_service.rpc.pipeline import Call
from tests.support.certificates import SERVER_AUTH, Issued, TestAuthority, uris
from tests.support.server import TRUST_DOMAIN, RunningServer, running_server


class Projects:
    """A ModelService that lists one project, unless it is told to fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.behave: Callable[[int], None] = lambda _: None

    def list_projects(
        self, request: model_service_pb2.ListProjectsRequest, call: Call
    ) -> model_service_pb2.ListProjectsResponse:
        self.calls += 1
        self.behave(self.calls)
        project = resources_pb2.Project(name="projects/demo")
        return model_service_pb2.ListProjectsResponse(projects=[project])

    def __getattr__(self, name: str) -> Callable[[object, Call], object]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.list_projects  # type: ignore[return-value]  # never asked


@pytest.fixture
def projects() -> Projects:
    return Projects()


@pytest.fixture
def server(tmp_path: Path, projects: Projects) -> Iterator[RunningServer]:
    service: ServiceDescriptor = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]
    with running_server(tmp_path / "server", {service: projects}) as running:
        yield running


def session(tmp_path: Path, port: int, identity: Issued, **fields: object) -> Session:
    identity.write(tmp_path / "client")
    profile = {
        "endpoint": f"localhost:{port}",
        "ca_file": tmp_path / "client" / "ca.pem",
        "certificate_file": tmp_path / "client" / "certificate.pem",
        "key_file": tmp_path / "client" / "key.pem",
        **fields,
    }
    return Session(Profile.model_validate(profile), sleep=lambda _: None)


def refusal(opened: Session) -> ModelKmsError:
    try:
        with pytest.raises(ModelKmsError) as caught:
            catalogue.list_projects(opened)
        return caught.value
    finally:
        opened.close()


def test_the_right_identity_is_taken(tmp_path: Path, server: RunningServer) -> None:
    opened = session(tmp_path, server.port, server.authority.client("reader"))
    assert [project.id for project in catalogue.list_projects(opened)] == ["demo"]
    opened.close()
    assert refusal(opened).reason == "CLIENT_CLOSED"


def test_f01_no_certificate_in_the_profile_is_credential_missing(
    tmp_path: Path, server: RunningServer
) -> None:
    identity = server.authority.client("reader")
    for fields in ({"certificate_file": None}, {"key_file": None}):
        with pytest.raises(CredentialMissing) as caught:
            session(tmp_path, server.port, identity, **fields)
        assert "TLS" in caught.value.message
    with pytest.raises(CredentialMissing, match="does not exist"):
        session(tmp_path, server.port, identity, key_file=tmp_path / "absent")


def test_f03_a_client_certificate_of_a_foreign_ca_is_credential_invalid(
    tmp_path: Path, server: RunningServer, projects: Projects
) -> None:
    foreign = TestAuthority(TRUST_DOMAIN, "foreign CA").client("reader")
    trusting_us = Issued(foreign.certificate, foreign.key, server.authority.pem)
    told = refusal(session(tmp_path, server.port, trusting_us))
    assert type(told) is CredentialInvalid
    assert told.exit_code == 4
    assert projects.calls == 0


def test_f03_the_wrong_ca_file_is_server_not_trusted(tmp_path: Path, server: RunningServer) -> None:
    mine = server.authority.client("reader")
    other = TestAuthority(TRUST_DOMAIN, "other CA").pem
    told = refusal(session(tmp_path, server.port, Issued(mine.certificate, mine.key, other)))
    assert type(told) is ServerNotTrusted
    assert str(tmp_path / "client" / "ca.pem") in told.message


def test_f03_a_server_of_another_name_is_not_trusted(tmp_path: Path, server: RunningServer) -> None:
    mine = server.authority.client("reader")
    told = refusal(session(tmp_path, server.port, mine, endpoint=f"127.0.0.2:{server.port}"))
    # Listens on 127.0.0.1 only where loopback addresses are told apart.
    assert type(told) in (ServerNotTrusted, ServiceUnavailable)


def test_f03_a_foreign_trust_domain_is_told(tmp_path: Path, server: RunningServer) -> None:
    foreign = server.authority.issue(uris("spiffe://elsewhere.example/reader"))
    assert type(refusal(session(tmp_path, server.port, foreign))) is TrustDomainUnknown


@pytest.mark.parametrize("ended", [timedelta(minutes=-1), timedelta(days=-30)])
def test_f04_an_expired_certificate_is_credential_expired(
    tmp_path: Path, server: RunningServer, ended: timedelta
) -> None:
    expired = server.authority.client("reader", lifetime=ended)
    told = refusal(session(tmp_path, server.port, expired))
    assert type(told) is CredentialExpired
    assert "expired" in told.message


def test_f04_a_certificate_for_servers_only_is_an_identity_error(
    tmp_path: Path, server: RunningServer
) -> None:
    wrong = server.authority.issue(uris(f"spiffe://{TRUST_DOMAIN}/reader"), usages=[SERVER_AUTH])
    assert refusal(session(tmp_path, server.port, wrong)).exit_code == 4


@pytest.mark.parametrize("names", [(), ("spiffe://test.example/a", "spiffe://test.example/b")])
def test_f06_not_exactly_one_uri_is_spiffe_id_invalid(
    tmp_path: Path, server: RunningServer, names: tuple[str, ...]
) -> None:
    wrong = server.authority.issue(uris(*names))
    opened = session(tmp_path, server.port, wrong)
    with pytest.raises(SpiffeIdInvalid):
        _ = opened.identity.principal
    assert type(refusal(opened)) is SpiffeIdInvalid


def test_a_closed_port_is_service_unavailable_with_a_hint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = refusal(session(tmp_path, port, TestAuthority(TRUST_DOMAIN).client("reader")))
    assert type(told) is ServiceUnavailable
    assert (told.exit_code, "nothing listens" in told.message) == (5, True)
    assert "endpoint" in (told.hint or "")


def test_a_port_that_speaks_no_tls_is_service_unavailable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def serve() -> None:
            try:
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(b"SSH-2.0-x\r\n")
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        told = refusal(session(tmp_path, port, TestAuthority(TRUST_DOMAIN).client("reader")))
    assert type(told) is ServiceUnavailable


def test_an_unknown_host_is_service_unavailable(tmp_path: Path) -> None:
    mine = TestAuthority(TRUST_DOMAIN).client("reader")
    told = refusal(session(tmp_path, 1, mine, endpoint="no-such-host.invalid:1"))
    assert type(told) is ServiceUnavailable


def test_an_outage_is_retried_and_then_told_as_what_it_is(
    tmp_path: Path, server: RunningServer, projects: Projects
) -> None:
    def fail(until: int) -> Callable[[int], None]:
        def behave(call: int) -> None:
            if call <= until:
                raise service_errors.VaultSealed

        return behave

    mine = server.authority.client("reader")
    projects.behave = fail(ATTEMPTS - 1)
    assert catalogue.list_projects(session(tmp_path, server.port, mine))
    assert projects.calls == ATTEMPTS
    projects.calls, projects.behave = 0, fail(99)
    told = refusal(session(tmp_path, server.port, mine))
    assert type(told) is VaultSealed
    assert told.exit_code == 5
    assert projects.calls == ATTEMPTS


def test_what_will_not_change_is_not_retried(
    tmp_path: Path, server: RunningServer, projects: Projects
) -> None:
    def behave(_: int) -> None:
        raise service_errors.ModelNotFoundOrDenied("decision-1")

    projects.behave = behave
    told = refusal(session(tmp_path, server.port, server.authority.client("reader")))
    assert told.reason == "MODEL_NOT_FOUND_OR_DENIED"
    assert told.metadata["decision_id"] == "decision-1"
    assert projects.calls == 1


def test_f27_a_defect_of_the_service_has_an_incident_id(
    tmp_path: Path, server: RunningServer, projects: Projects
) -> None:
    def behave(_: int) -> None:
        raise RuntimeError("canary")

    projects.behave = behave
    told = refusal(session(tmp_path, server.port, server.authority.client("reader")))
    assert (told.reason, told.exit_code) == ("INTERNAL_ERROR", 1)
    assert told.metadata["incident_id"]
    assert "canary" not in str(told.as_dict())


@pytest.mark.parametrize("name", ["certificate_file", "key_file", "ca_file"])
def test_files_that_are_no_pem_are_told_by_name_without_their_content(
    tmp_path: Path, server: RunningServer, name: str
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CANARY-----\nsecret\n")
    with pytest.raises((CredentialInvalid, ProfileInvalid)) as caught:
        session(tmp_path, server.port, server.authority.client("reader"), **{name: broken})
    assert "broken.pem" in caught.value.message
    assert "CANARY" not in str(caught.value.as_dict())


def test_a_key_of_another_certificate_is_credential_invalid(
    tmp_path: Path, server: RunningServer
) -> None:
    one, two = server.authority.client("a"), server.authority.client("b")
    with pytest.raises(CredentialInvalid, match="does not belong"):
        session(tmp_path, server.port, Issued(one.certificate, two.key, one.ca))


def test_the_sdk_leaves_the_hosts_cipher_suites_alone() -> None:
    before = os.environ.get("GRPC_SSL_CIPHER_SUITES")
    code = "import os, modelkms.session; print(os.environ.get('GRPC_SSL_CIPHER_SUITES'))"
    environment = {key: value for key, value in os.environ.items() if key[:4] != "GRPC"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == "None"
    assert os.environ.get("GRPC_SSL_CIPHER_SUITES") == before
