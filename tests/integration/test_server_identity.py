"""Faults F01-F11, F15, F16: who is let in, over real channels with real certificates."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf.descriptor import ServiceDescriptor
from modelkms_api.v1 import model_service_pb2, model_service_pb2_grpc, resources_pb2

from kms_service.domain.errors import ConfigurationError
from kms_service.rpc.pipeline import Call
from kms_service.rpc.server import ServerLimits, _accepts_tls_1_2
from kms_service.rpc.tls import TlsFiles, load_tls_material
from tests.support.certificates import Issued, TestAuthority, key_usage, uris
from tests.support.server import TRUST_DOMAIN, Refusal, RunningServer, refusal, running_server

TIMEOUT_S = 10.0
GOOD = f"spiffe://{TRUST_DOMAIN}/team/reader"


class EchoIdentity:
    """ModelService that answers with who called; nothing else is asked in these tests."""

    def __init__(self) -> None:
        self.calls = 0

    def get_project(
        self, request: model_service_pb2.GetProjectRequest, call: Call
    ) -> resources_pb2.Project:
        self.calls += 1
        return resources_pb2.Project(
            name=call.caller.principal.id, master_key=call.caller.principal.instance
        )

    def __getattr__(self, name: str) -> Callable[[object, Call], object]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get_project  # type: ignore[return-value]  # never asked


def services(servicer: EchoIdentity) -> dict[ServiceDescriptor, object]:
    return {model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]: servicer}


@pytest.fixture(scope="module")
def echo() -> EchoIdentity:
    return EchoIdentity()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, echo: EchoIdentity) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), services(echo)) as running:
        yield running


def ask(channel: grpc.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> resources_pb2.Project:
    return model_service_pb2_grpc.ModelServiceStub(channel).GetProject(
        model_service_pb2.GetProjectRequest(), timeout=TIMEOUT_S, metadata=metadata
    )


def ask_for(channel: grpc.Channel, seconds: float) -> None:
    """Ask again and again; the first refusal is raised."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ask(channel)
        time.sleep(0.1)


def refused(
    server: RunningServer, identity: Issued, metadata: tuple[tuple[str, str], ...] = ()
) -> Refusal:
    with server.channel(identity) as channel, pytest.raises(grpc.RpcError) as caught:
        ask(channel, metadata)
    return refusal(caught.value)


def handshake_refused(server: RunningServer, identity: Issued) -> None:
    """TLS itself refuses: a bare UNAVAILABLE without our details."""
    told = refused(server, identity)
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "")


def unauthenticated(told: Refusal, reason: str) -> None:
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert told.metadata == {}
    assert told.retry_after_s is None


def test_identity_is_the_spiffe_id_and_the_key(server: RunningServer) -> None:
    identity = server.authority.client("team/reader")
    with server.channel(identity) as channel:
        answer = ask(channel)
    assert answer.name == GOOD
    assert answer.master_key == identity.instance


def test_f01_no_client_certificate(server: RunningServer, echo: EchoIdentity) -> None:
    before = echo.calls
    credentials = grpc.ssl_channel_credentials(server.authority.pem)
    with (
        grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        ask(channel)
    assert refusal(caught.value).code is grpc.StatusCode.UNAVAILABLE
    assert echo.calls == before


def test_f02_plaintext_channel(server: RunningServer, echo: EchoIdentity) -> None:
    before = echo.calls
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        ask(channel)
    assert refusal(caught.value).code is grpc.StatusCode.UNAVAILABLE
    assert echo.calls == before


def test_f03_foreign_ca(server: RunningServer) -> None:
    foreign = TestAuthority(TRUST_DOMAIN).client("team/reader")
    handshake_refused(server, Issued(foreign.certificate, foreign.key, server.authority.pem))


def test_f03_foreign_trust_domain(server: RunningServer) -> None:
    identity = server.authority.issue(uris("spiffe://elsewhere.example/team/reader"))
    unauthenticated(refused(server, identity), "TRUST_DOMAIN_UNKNOWN")


def test_f04_expired(server: RunningServer) -> None:
    handshake_refused(
        server, server.authority.client("team/reader", lifetime=timedelta(seconds=-1))
    )


def test_f04_not_yet_valid(server: RunningServer) -> None:
    handshake_refused(server, server.authority.issue(uris(GOOD), starts_in=timedelta(minutes=30)))


def test_f04_ca_as_leaf(server: RunningServer) -> None:
    unauthenticated(
        refused(server, server.authority.issue(uris(GOOD), ca=True)), "CREDENTIAL_INVALID"
    )


def test_f04_leaf_that_may_sign_certificates(server: RunningServer) -> None:
    usage = key_usage(digital_signature=True, key_cert_sign=True)
    identity = server.authority.issue(uris(GOOD), key_usage=usage)
    unauthenticated(refused(server, identity), "CREDENTIAL_INVALID")


def test_f04_no_client_auth_usage(server: RunningServer) -> None:
    server_only = server.authority.issue(
        uris(GOOD), usages=(x509.oid.ExtendedKeyUsageOID.SERVER_AUTH,)
    )
    handshake_refused(server, server_only)


def test_f04_any_usage_is_not_client_auth(server: RunningServer) -> None:
    usage = x509.oid.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    with server.channel(server.authority.issue(uris(GOOD), usages=(usage,))) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel)
        assert refusal(caught.value).code in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.UNAVAILABLE,
        )


def test_f04_no_usage_extension_at_all_is_accepted(server: RunningServer) -> None:
    with server.channel(server.authority.issue(uris(GOOD), usages=None, ca=None)) as channel:
        assert ask(channel).name == GOOD


def test_f05_dns_san_that_reads_like_an_id(server: RunningServer) -> None:
    identity = server.authority.issue([x509.DNSName(GOOD)])
    unauthenticated(refused(server, identity), "SPIFFE_ID_INVALID")


def test_f05_other_kinds_of_san_do_not_disturb(server: RunningServer) -> None:
    identity = server.authority.issue([x509.DNSName("reader.example"), *uris(GOOD)])
    with server.channel(identity) as channel:
        assert ask(channel).name == GOOD


@pytest.mark.parametrize(
    "names",
    [[], uris(GOOD, GOOD + "2"), uris(GOOD, GOOD), uris(GOOD, "https://example.com/")],
    ids=["none", "two", "same twice", "one of another scheme"],
)
def test_f06_not_exactly_one_uri_san(server: RunningServer, names: list[x509.GeneralName]) -> None:
    identity = server.authority.issue(names, common_name="reader")
    unauthenticated(refused(server, identity), "SPIFFE_ID_INVALID")


def test_f06_id_only_in_the_common_name(server: RunningServer) -> None:
    identity = server.authority.issue([], common_name=GOOD)
    unauthenticated(refused(server, identity), "SPIFFE_ID_INVALID")


BAD_IDS = {
    "upper-case trust domain": "spiffe://Test.example/reader",
    "upper-case scheme": "SPIFFE://test.example/reader",
    "other scheme": "https://test.example/reader",
    "port": "spiffe://test.example:8443/reader",
    "user": "spiffe://user@test.example/reader",
    "query": "spiffe://test.example/reader?admin=1",
    "fragment": "spiffe://test.example/reader#admin",
    "percent": "spiffe://test.example/%2e%2e/admin",
    "dot dot": "spiffe://test.example/reader/../admin",
    "dot": "spiffe://test.example/./admin",
    "double slash": "spiffe://test.example//reader",
    "trailing slash": "spiffe://test.example/reader/",
    "no path": "spiffe://test.example",
    "only a slash": "spiffe://test.example/",
    "no trust domain": "spiffe:///reader",
    "over 2048 bytes": f"spiffe://test.example/{'a' * 2027}",
}


@pytest.mark.parametrize("text", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_f07_malformed_id(server: RunningServer, text: str) -> None:
    unauthenticated(refused(server, server.authority.issue(uris(text))), "SPIFFE_ID_INVALID")


def test_f07_id_of_2048_bytes_is_accepted(server: RunningServer) -> None:
    text = f"spiffe://test.example/{'a' * 2026}"
    assert len(text) == 2048
    with server.channel(server.authority.issue(uris(text))) as channel:
        assert ask(channel).name == text


def test_f08_certificate_expires_on_a_live_connection(server: RunningServer) -> None:
    identity = server.authority.client("short-lived", lifetime=timedelta(seconds=3))
    with server.channel(identity) as channel:
        assert ask(channel).name.endswith("/short-lived")
        time.sleep(3.1)
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel)
    unauthenticated(refusal(caught.value), "CREDENTIAL_EXPIRED")


def test_f08_f09_connection_age_ends_old_connections(tmp_path: Path, echo: EchoIdentity) -> None:
    limits = ServerLimits(2, 2, max_connection_age_s=1.0, max_connection_age_grace_s=0.5)
    with running_server(tmp_path, services(echo), limits=limits) as server:
        with server.channel("team/reader") as channel:
            assert ask(channel).name == GOOD
            # The CA is replaced: the old connection must not outlive its age.
            TestAuthority(TRUST_DOMAIN).server().write(server.tls_folder)
            with pytest.raises(grpc.RpcError) as caught:
                ask_for(channel, seconds=6.0)
        assert refusal(caught.value).code is grpc.StatusCode.UNAVAILABLE


def test_f09_removed_root_refuses_new_handshakes(tmp_path: Path, echo: EchoIdentity) -> None:
    with running_server(tmp_path, services(echo)) as server:
        old = server.authority.client("team/reader")
        with server.channel(old) as channel:
            ask(channel)
        successor = TestAuthority(TRUST_DOMAIN)
        successor.server().write(server.tls_folder)
        handshake_refused(server, Issued(old.certificate, old.key, successor.pem))
        with server.channel(successor.client("team/reader")) as channel:
            assert ask(channel).name == GOOD


@pytest.mark.parametrize("what", ["empty", "torn", "mismatched", "missing", "not a CA", "RSA"])
def test_f10_unusable_reload_keeps_the_last_good(
    tmp_path: Path, echo: EchoIdentity, what: str
) -> None:
    with running_server(tmp_path, services(echo)) as server:
        folder = server.tls_folder
        match what:
            case "empty":
                (folder / "ca.pem").write_bytes(b"")
            case "torn":
                whole = (folder / "certificate.pem").read_bytes()
                (folder / "certificate.pem").write_bytes(whole[: len(whole) // 2])
            case "mismatched":
                (folder / "key.pem").write_bytes(server.authority.server().key)
            case "missing":
                (folder / "key.pem").unlink()
            case "not a CA":
                (folder / "ca.pem").write_bytes(server.authority.client("x").certificate)
            case "RSA":
                server.authority.server(rsa.generate_private_key(65537, 2048)).write(folder)
        with server.channel("team/reader") as channel:
            assert ask(channel).name == GOOD
        handshake_refused(
            server,
            Issued(
                (foreign := TestAuthority(TRUST_DOMAIN).client("team/reader")).certificate,
                foreign.key,
                server.authority.pem,
            ),
        )
        sample = server.metrics.registry.get_sample_value
        assert sample("modelkms_tls_last_reload_ok") == 0
        assert (sample("modelkms_tls_reloads_total", {"result": "refused"}) or 0) >= 1
        # Put right again, it takes effect without a restart.
        server.authority.server().write(folder)
        with server.channel("team/reader") as channel:
            assert ask(channel).name == GOOD
        assert sample("modelkms_tls_last_reload_ok") == 1


def test_f11_tls_1_2_handshake_fails(server: RunningServer, tmp_path: Path) -> None:
    server.authority.client("team/reader").write(tmp_path)

    def shake(version: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(tmp_path / "ca.pem")
        context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
        ):
            return tls.version()

    assert shake(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(OSError):
        shake(ssl.TLSVersion.TLSv1_2)


def test_f11_only_an_ecdsa_key_is_served_with(tmp_path: Path) -> None:
    authority = TestAuthority(TRUST_DOMAIN)
    files = TlsFiles(tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    authority.server(rsa.generate_private_key(65537, 2048)).write(tmp_path)
    with pytest.raises(ConfigurationError, match=r"server\.key_file: the key is not ECDSA"):
        load_tls_material(files)
    authority.server(ec.generate_private_key(ec.SECP384R1())).write(tmp_path)
    assert load_tls_material(files).certificate_chain


@pytest.mark.parametrize("tokens", [1, 2])
def test_f15_a_token_beside_the_certificate(server: RunningServer, tokens: int) -> None:
    told = refused(
        server,
        server.authority.client("team/reader"),
        tuple(("authorization", f"Bearer {number}") for number in range(tokens)),
    )
    unauthenticated(told, "CREDENTIAL_CONFLICT")


def test_f15_identity_headers_are_ignored(server: RunningServer) -> None:
    forged = tuple(
        (name, "spiffe://test.example/admin")
        for name in ("x-spiffe-id", "x-forwarded-client-cert", "x-peer-uri", "peer_spiffe_id")
    )
    with server.channel("team/reader") as channel:
        assert ask(channel, forged).name == GOOD


def test_f16_rejections_tell_only_their_reason(server: RunningServer) -> None:
    canary = "canarycanarycanary"
    identity = server.authority.issue(uris(f"spiffe://test.example/{canary}?"), common_name=canary)
    with server.channel(identity) as channel, pytest.raises(grpc.RpcError) as caught:
        ask(channel)
    seen = repr(caught.value) + repr(refusal(caught.value))
    for secret in (canary, "BEGIN CERTIFICATE", "x509", "Traceback", "cryptography"):
        assert secret not in seen
    assert canary not in server.log.getvalue()


@pytest.mark.parametrize("accepted", [True, False])
def test_f11_the_start_finds_out_whether_tls_1_2_is_accepted(
    tmp_path: Path, accepted: bool
) -> None:
    TestAuthority(TRUST_DOMAIN).server().write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if accepted else ssl.TLSVersion.TLSv1_3

    def answer_once(listener: socket.socket) -> None:
        with listener.accept()[0] as connection, suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as other:
        other.submit(answer_once, listener)
        assert _accepts_tls_1_2("127.0.0.1:0", listener.getsockname()[1]) is accepted
