"""Faults F12 to F16 on the token port: bearer tokens of a real issuer, over real channels."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from modelkms_api.v1 import model_service_pb2, model_service_pb2_grpc, resources_pb2

from kms_service.adapters.jwks import KeyCache, KeySource, fetcher
from kms_service.adapters.oidc import ALGORITHMS, Issuer, TokenVerifier
from kms_service.domain.identity import Principal
from kms_service.rpc.pipeline import Call
from tests.integration.test_server_identity import EchoIdentity, services
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer, oidc_issuer, signing_key
from tests.support.server import Refusal, RunningServer, WallClock, refusal, running_server

TIMEOUT_S = 10.0
MAX_AGE_S, REFRESH_S, COOL_DOWN_S = 3600.0, 300.0, 10.0


class ManualTime:
    """Elapsed seconds under the test's control."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class EchoPrincipal(EchoIdentity):
    """Remembers who called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Principal] = []

    def get_project(
        self, request: model_service_pb2.GetProjectRequest, call: Call
    ) -> resources_pb2.Project:
        self.seen.append(call.caller.principal)
        return super().get_project(request, call)


@dataclass
class Rig:
    server: RunningServer
    issuer: OidcIssuer
    echo: EchoPrincipal
    time: ManualTime
    verifier: TokenVerifier
    verifier_clock: WallClock

    def channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self.server.authority.pem)
        port = self.server.server.token_port
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options)

    def call(self, *metadata: tuple[str, str], channel: grpc.Channel | None = None) -> Principal:
        with ExitStack() as stack:
            channel = channel or stack.enter_context(self.channel())
            model_service_pb2_grpc.ModelServiceStub(channel).GetProject(
                model_service_pb2.GetProjectRequest(), timeout=TIMEOUT_S, metadata=metadata
            )
        return self.echo.seen[-1]

    def present(self, token: str) -> Principal:
        return self.call(("authorization", f"Bearer {token}"))

    def refused(self, token: str) -> Refusal:
        with pytest.raises(grpc.RpcError) as caught:
            self.present(token)
        return refusal(caught.value)


def rig_on(stack: ExitStack, folder: Path, **issuer_options: Any) -> Rig:
    issuer = stack.enter_context(oidc_issuer(folder / "issuer", **issuer_options))
    time, echo, clock = ManualTime(), EchoPrincipal(), WallClock()
    source = KeySource(issuer.url, ca_file=issuer.ca_file)
    keys = KeyCache(
        fetcher(source),
        time,
        refresh_s=REFRESH_S,
        max_age_s=MAX_AGE_S,
        cool_down_s=COOL_DOWN_S,
    )
    trusted = Issuer("k8s", issuer.url, (AUDIENCE, "other"), ALGORITHMS, "groups", keys)
    verifier = TokenVerifier([trusted], clock)
    server = stack.enter_context(running_server(folder / "server", services(echo), tokens=verifier))
    return Rig(server, issuer, echo, time, verifier, clock)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """For tests that do not change the issuer."""
    with ExitStack() as stack:
        yield rig_on(stack, tmp_path_factory.mktemp("rig"))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield rig_on(stack, tmp_path)


def unauthenticated(told: Refusal, reason: str = "TOKEN_INVALID") -> None:
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert told.metadata == {}


# --- who it is -----------------------------------------------------------------------------------


def test_a_kubernetes_service_account_is_a_principal_with_claims(shared: Rig) -> None:
    token = shared.issuer.service_account("prod", "app", groups=["vision", "all"], amr=["mfa", 2])
    principal = shared.present(token)
    assert principal.id == "oidc:k8s:system:serviceaccount:prod:app"
    assert (principal.issuer, principal.subject) == ("k8s", "system:serviceaccount:prod:app")
    assert (principal.trust_domain, principal.path) == ("", "")
    assert principal.groups == ("k8s:all", "k8s:vision")
    claims = dict(principal.claims)
    assert claims["kubernetes.io/namespace"] == ("prod",)
    assert claims["kubernetes.io/serviceaccount/name"] == ("app",)
    assert claims["amr"] == ("2", "mfa")
    assert not {"iat", "exp", "iss", "sub"} & claims.keys()
    assert (principal.instance, principal.instance_proven) == ("0" * 64, False)


def test_an_instance_is_what_the_client_says_and_unproven(shared: Rig) -> None:
    authorization = ("authorization", f"Bearer {shared.issuer.token()}")
    principal = shared.call(authorization, ("x-modelkms-instance", "ab" * 32))
    assert (principal.instance, principal.instance_proven) == ("ab" * 32, False)
    for wrong in ("AB" * 32, "ab" * 31, "spiffe://x/y"):
        assert shared.call(authorization, ("x-modelkms-instance", wrong)).instance == "0" * 64


def test_a_bound_token_alone_proves_nothing(shared: Rig) -> None:
    thumbprint = hashlib.sha256(b"key").digest()
    encoded = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    for name in ("x5t#S256", "jkt"):
        principal = shared.present(shared.issuer.token(cnf={name: encoded}))
        assert (principal.instance, principal.instance_proven) == (thumbprint.hex(), False)
    wrongs: list[Any] = [{"kid": "1"}, {"jkt": "short"}, {"jkt": 5}, {}, [], "x", {"jkt": "!" * 43}]
    for wrong in wrongs:
        unauthenticated(shared.refused(shared.issuer.token(cnf=wrong)))


# Issuers use it still; here it can only mean Ed25519 (RFC 9864 deprecates the vaguer name).
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES384", "EdDSA"])
def test_each_allowed_algorithm_is_verified(tmp_path: Path, algorithm: str) -> None:
    with ExitStack() as stack:
        rig = rig_on(stack, tmp_path, algorithm=algorithm)
        assert rig.present(rig.issuer.token()).subject == "app"


# --- F01, F11: the port --------------------------------------------------------------------------


def test_f01_no_token_on_the_token_port(shared: Rig) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared.call()
    unauthenticated(refusal(caught.value), "CREDENTIAL_MISSING")


def test_f01_a_token_does_not_open_the_mtls_port(shared: Rig) -> None:
    credentials = grpc.ssl_channel_credentials(shared.server.authority.pem)
    authorization = ("authorization", f"Bearer {shared.issuer.token()}")
    with (
        grpc.secure_channel(f"127.0.0.1:{shared.server.port}", credentials) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        shared.call(authorization, channel=channel)
    assert refusal(caught.value).code is grpc.StatusCode.UNAVAILABLE


def test_f11_tls_1_2_fails_on_the_token_port(shared: Rig) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=shared.server.authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    port = shared.server.server.token_port

    def version() -> str | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
        ):
            return tls.version()

    assert version() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):
        version()


# --- F12: forged signatures ----------------------------------------------------------------------


def segment(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def symmetric(secret: bytes, kid: str | None, payload: str) -> str:
    """HS256 by hand: libraries no longer take a public key for a secret."""
    signed = f"{segment({'alg': 'HS256', 'kid': kid})}.{payload}"
    mac = hmac.digest(secret, signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def forged(rig: Rig) -> dict[str, str]:
    """Each claims to be the issuer's."""
    good = rig.issuer.token()
    _, payload, signature = good.split(".")
    public = rig.issuer.keys[0]
    pem = public.as_pem(private=False)
    other = signing_key("ES256", "first")
    kid = public.kid
    crit = segment({"alg": "ES256", "kid": kid, "crit": ["x"], "x": 1})
    admin = segment({"iss": rig.issuer.url, "sub": "admin"})
    return {
        "alg none": f"{segment({'alg': 'none', 'kid': kid})}.{payload}.",
        "alg None, signature kept": f"{segment({'alg': 'None', 'kid': kid})}.{payload}.{signature}",
        "no alg": f"{segment({'kid': kid})}.{payload}.{signature}",
        "HS256 with the public key": symmetric(pem, kid, payload),
        "another key under the same kid": rig.issuer.token(key=other),
        "its own key in the header": rig.issuer.token(
            key=other, header={"jwk": other.as_dict(private=False)}
        ),
        "a kid that is a path": rig.issuer.token(header={"kid": "../../etc/passwd"}),
        "a kid that is no text": f"{segment({'alg': 'ES256', 'kid': 7})}.{payload}.{signature}",
        "crit": f"{crit}.{payload}.{signature}",
        "payload changed": f"{good.split('.')[0]}.{admin}.{signature}",
        "signature cut": good[:-4],
        "no signature": good.rpartition(".")[0] + ".",
        "two segments": good.rpartition(".")[0],
        "nothing": "",
        "not a token": "Bearer Bearer",
        "too long": good + "A" * 8192,
        "not ASCII": good + "\u00e9".encode().decode("latin-1"),
    }


FORGERIES = [
    "alg none", "alg None, signature kept", "no alg", "HS256 with the public key",
    "another key under the same kid", "its own key in the header", "a kid that is a path",
    "a kid that is no text", "crit", "payload changed", "signature cut", "no signature",
    "two segments", "nothing", "not a token",
]  # fmt: skip


@pytest.mark.parametrize("what", FORGERIES)
def test_f12_forged_tokens(shared: Rig, what: str) -> None:
    before = shared.echo.calls
    unauthenticated(shared.refused(forged(shared)[what]))
    assert shared.echo.calls == before


def test_f12_no_url_in_a_token_is_fetched(shared: Rig) -> None:
    """A second issuer, really there, whose keys the token names."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.2)
        url = f"https://127.0.0.1:{bait.getsockname()[1]}/keys"
        other = signing_key("ES256", "theirs")
        for header in ({"jku": url}, {"x5u": url}, {"jku": url, "kid": "unknown"}):
            unauthenticated(shared.refused(shared.issuer.token(key=other, header=header)))
        unauthenticated(shared.refused(shared.issuer.token(iss=url.removesuffix("/keys"))))
        with pytest.raises(TimeoutError):
            bait.accept()


def test_f12_an_algorithm_that_is_not_allowed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        rig = rig_on(stack, tmp_path)
        keys = KeyCache(fetcher(KeySource(rig.issuer.url, ca_file=rig.issuer.ca_file)), rig.time)
        only = Issuer("k8s", rig.issuer.url, (AUDIENCE,), ("RS256",), "groups", keys)
        rig.verifier._issuers[rig.issuer.url] = only
        unauthenticated(rig.refused(rig.issuer.token()))


# --- F13: claims ---------------------------------------------------------------------------------

WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "issuer with a slash": {"iss": "SLASH"},
    "foreign issuer": {"iss": "https://elsewhere.example"},
    "no issuer": {"without": ("iss",)},
    "issuers": {"iss": ["https://elsewhere.example"]},
    "foreign audience": {"aud": ["elsewhere"]},
    "no audience": {"without": ("aud",)},
    "audience that only begins so": {"aud": AUDIENCE + "-2"},
    "expired": {"exp": 1},
    "no end": {"without": ("exp",)},
    "end as text": {"exp": "9999999999"},
    "end not a number": {"exp": True},
    "early": {"nbf": 9_999_999_999},
    "issued in the future": {"iat": 9_999_999_999},
    "no subject": {"without": ("sub",)},
    "empty subject": {"subject": ""},
    "subject with a newline": {"subject": "a\nb"},
    "subject with bidi": {"subject": "a\u202eb"},
    "subject not NFC": {"subject": "e\u0301"},
    "subject too long": {"subject": "a" * 1025},
    "claims too deep": {"deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}},
}


@pytest.mark.parametrize("what", WRONG_CLAIMS)
def test_f13_wrong_claims(shared: Rig, what: str) -> None:
    wrong = dict(WRONG_CLAIMS[what])
    if wrong.get("iss") == "SLASH":
        wrong["iss"] = shared.issuer.url + "/"
    unauthenticated(shared.refused(shared.issuer.token(**wrong)))


def test_f13_a_known_token_ends_on_time(rig: Rig) -> None:
    token = rig.issuer.token()
    assert rig.present(token).subject == "app"
    rig.verifier_clock.ahead_by = timedelta(seconds=601)
    unauthenticated(rig.refused(token))


# --- F14: the issuer's keys ----------------------------------------------------------------------


def test_f14_keys_are_fetched_once_and_serve_through_an_outage(rig: Rig) -> None:
    token = rig.issuer.token()
    rig.present(token)
    rig.present(rig.issuer.token("other"))
    assert rig.issuer.requests["/keys"] == 1
    rig.issuer.stop()
    rig.time.now_s += MAX_AGE_S - 1
    assert not rig.verifier.refresh_keys()
    assert rig.present(token).subject == "app"
    assert rig.present(rig.issuer.token("third")).subject == "third"
    rig.time.now_s += 2
    # Also for a token that was verified before.
    for presented in (token, rig.issuer.token("fourth")):
        told = rig.refused(presented)
        assert (told.code, told.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "IDENTITY_PROVIDER_UNAVAILABLE",
        )
        assert told.retry_after_s
    rig.issuer.start()
    rig.time.now_s += COOL_DOWN_S
    assert rig.verifier.refresh_keys()
    assert rig.present(token).subject == "app"


def test_f14_no_keys_at_all_is_an_outage(rig: Rig) -> None:
    rig.issuer.stop()
    told = rig.refused(rig.issuer.token())
    assert (told.code, told.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "IDENTITY_PROVIDER_UNAVAILABLE",
    )
    # Who is of nobody's issuer is told so, outage or not.
    unauthenticated(rig.refused(rig.issuer.token(iss="https://elsewhere.example")))


@pytest.mark.parametrize(
    "garbage",
    [b"", b"<html>", b"[]", b'{"keys": 5}', b'{"keys": []}',
     b'{"keys": [{"kty": "oct", "k": "AA"}]}', b"\xff\xfe", b"{" * 100_000,
     b" " * (1 << 20) + b"{}"],
    ids=["empty", "HTML", "a list", "no list", "no keys", "symmetric", "no text", "deep", "long"],
)  # fmt: skip
def test_f14_garbage_is_no_key_set(rig: Rig, garbage: bytes) -> None:
    token = rig.issuer.token()
    rig.present(token)
    rig.issuer.garbage = garbage
    rig.time.now_s += REFRESH_S + 1
    rig.verifier.refresh_keys()
    assert rig.present(token).subject == "app"
    unauthenticated(rig.refused(rig.issuer.token(header={"kid": "unknown"})))


def test_f14_a_rotated_key_is_taken_and_the_old_one_is_not(rig: Rig) -> None:
    old = rig.issuer.token()
    rig.present(old)
    rig.issuer.rotate("second")
    rig.time.now_s += COOL_DOWN_S
    assert rig.present(rig.issuer.token("new")).subject == "new"
    # Verified before, under keys that are no longer: verified anew, and refused.
    unauthenticated(rig.refused(old))


def test_f14_a_flood_of_unknown_kids_is_one_fetch_a_cool_down(rig: Rig) -> None:
    rig.present(rig.issuer.token())
    rig.time.now_s += COOL_DOWN_S
    for number in range(20):
        unauthenticated(rig.refused(rig.issuer.token(header={"kid": f"unknown-{number}"})))
    assert rig.issuer.requests["/keys"] == 2
    rig.time.now_s += COOL_DOWN_S
    rig.refused(rig.issuer.token(header={"kid": "again"}))
    assert rig.issuer.requests["/keys"] == 3


# --- F15: contradictions -------------------------------------------------------------------------


def test_f15_two_authorizations(shared: Rig) -> None:
    one = ("authorization", f"Bearer {shared.issuer.token()}")
    with pytest.raises(grpc.RpcError) as caught:
        shared.call(one, one)
    unauthenticated(refusal(caught.value), "CREDENTIAL_CONFLICT")


@pytest.mark.parametrize("value", ["", "Bearer", "Basic YTpi", "Bearer  ", "Token x"])
def test_f15_other_schemes(shared: Rig, value: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared.call(("authorization", value))
    unauthenticated(refusal(caught.value))


def test_f15_identity_headers_are_ignored(shared: Rig) -> None:
    authorization = ("authorization", f"Bearer {shared.issuer.token()}")
    principal = shared.call(authorization, ("x-spiffe-id", "spiffe://test.example/admin"))
    assert principal.id == "oidc:k8s:app"


def bound_to(certificate: bytes) -> dict[str, str]:
    digest = x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())
    return {"x5t#S256": base64.urlsafe_b64encode(digest).rstrip(b"=").decode()}


def test_f15_a_token_bound_to_the_certificate_adds_its_claims(shared: Rig) -> None:
    identity = shared.server.authority.client("team/reader")
    token = shared.issuer.token(
        "machine-7", cnf=bound_to(identity.certificate), tee={"measured": True}, groups=["tee"]
    )
    with shared.server.channel(identity) as channel:
        principal = shared.call(("authorization", f"Bearer {token}"), channel=channel)
    assert principal.id == "spiffe://test.example/team/reader"
    assert (principal.instance, principal.instance_proven) == (identity.instance, True)
    assert (principal.issuer, principal.groups) == ("k8s", ("k8s:tee",))
    assert dict(principal.claims)["tee/measured"] == ("true",)


def test_f15_a_token_that_is_not_bound_to_the_certificate(shared: Rig) -> None:
    identity = shared.server.authority.client("team/reader")
    other = shared.server.authority.client("team/reader")
    key = x509.load_pem_x509_certificate(identity.certificate).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).rstrip(b"=").decode()
    for claims, reason in (
        ({}, "CREDENTIAL_CONFLICT"),
        ({"cnf": bound_to(other.certificate)}, "CREDENTIAL_CONFLICT"),
        ({"cnf": {"jkt": thumbprint}}, "CREDENTIAL_CONFLICT"),
        ({"cnf": bound_to(identity.certificate), "exp": 1}, "TOKEN_INVALID"),
    ):
        token = shared.issuer.token(**claims)
        with shared.server.channel(identity) as channel, pytest.raises(grpc.RpcError) as caught:
            shared.call(("authorization", f"Bearer {token}"), channel=channel)
        unauthenticated(refusal(caught.value), reason)


# --- F16: what is told ---------------------------------------------------------------------------


def test_f16_no_token_and_no_parsers_words_anywhere(rig: Rig) -> None:
    canary = "canarycanarycanary"
    tokens = [
        *forged(rig).values(),
        rig.issuer.token(canary, aud=["elsewhere"], note=canary),
        rig.issuer.token(canary, exp=1),
        canary,
    ]
    told = []
    for token in tokens:
        if token.isascii() and len(token) < 8000:
            answer = rig.refused(token)
            unauthenticated(answer)
            told.append(answer.message)
    assert len(set(told)) == 1
    log = rig.server.log.getvalue()
    for secret in (canary, *(token.split(".")[-1] for token in tokens if len(token) > 100)):
        if len(secret) > 10:
            assert secret not in log
    assert "jwt" not in log.lower()


# --- cost ----------------------------------------------------------------------------------------


def test_a_token_is_verified_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    token = rig.issuer.token()
    rig.present(token)
    monkeypatch.setattr(rig.verifier, "_verify", lambda _token: pytest.fail("verified again"))
    for _ in range(3):
        assert rig.present(token).subject == "app"
