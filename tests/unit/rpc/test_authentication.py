"""Who calls, by what grpc says of the connection and the call: F01-F08, F11, F15, F16 without a
socket. `tests/integration/test_server_identity.py` and `test_server_tokens.py` have the sockets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from kms_service.domain.errors import (
    CredentialConflict,
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    SpiffeIdInvalid,
    TlsVersionTooOld,
    TokenInvalid,
    TrustDomainUnknown,
    Unauthenticated,
)
from kms_service.domain.identity import Principal, VerifiedToken
from kms_service.rpc import authentication
from kms_service.rpc.authentication import INSTANCE_HEADER, Authenticator
from tests.support.certificates import (
    CLIENT_AUTH,
    SERVER_AUTH,
    Issued,
    TestAuthority,
    key_usage,
    uris,
)

ID = "spiffe://test.example/reader"
TOKEN = "a.b.c"
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
INSTANCE = "5a" * 32


@dataclass
class OneToken:
    """Verifies one token; remembers what it was shown."""

    instance: str = ""
    certificate: str = ""
    seen: list[str] = field(default_factory=list)

    def verify(self, token: str) -> VerifiedToken:
        self.seen.append(token)
        if token != TOKEN:
            raise TokenInvalid
        principal = Principal(
            "oidc:corp:ana",
            "",
            "",
            self.instance,
            issuer="corp",
            subject="ana",
            groups=("corp:officers",),
            claims=(("site", ("north",)),),
            instance_proven=bool(self.instance),
        )
        return VerifiedToken(principal, NOW, NOW, self.certificate)


@dataclass
class MovableClock:
    """Stands at `time`."""

    time: datetime

    def now(self) -> datetime:
        return self.time


@pytest.fixture(scope="module")
def authority() -> TestAuthority:
    return TestAuthority("test.example")


@pytest.fixture(scope="module")
def reader(authority: TestAuthority) -> Issued:
    return authority.client("reader")


def context(identity: Issued | None = None, **changes: list[bytes]) -> dict[str, list[bytes]]:
    """As grpc gives it for a TLS 1.3 connection."""
    found = {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.3"]}
    if identity is not None:
        found["x509_pem_cert"] = [identity.certificate]
    return found | changes


def fingerprint(identity: Issued) -> str:
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    return certificate.fingerprint(hashes.SHA256()).hex()


def authenticator(tokens: OneToken | None = None, **changes: Any) -> Authenticator:
    # Not at `NOW`, the time of import: the certificates are made later, and not valid before.
    clock = MovableClock(datetime.now(UTC))
    return Authenticator(["test.example"], clock, tokens=tokens, **changes)


def bearer(token: str | bytes = f"Bearer {TOKEN}") -> tuple[str, str | bytes]:
    return ("authorization", token)


# --- certificates --------------------------------------------------------------------------------


def test_a_certificate_is_its_spiffe_id_and_its_key(reader: Issued) -> None:
    principal = authenticator().authenticate(context(reader))
    assert principal == Principal(ID, "test.example", "/reader", reader.instance)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"transport_security_type": []}, CredentialMissing),
        ({"transport_security_type": [b"insecure"]}, CredentialMissing),
        ({"transport_security_type": [b"ssl", b"ssl"]}, CredentialMissing),
        ({"ssl_tls_version": []}, TlsVersionTooOld),
        ({"ssl_tls_version": [b"TLSv1.2"]}, TlsVersionTooOld),
        ({"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]}, TlsVersionTooOld),
        ({"x509_pem_cert": []}, CredentialMissing),
        ({"x509_pem_cert": [b"one", b"two"]}, CredentialMissing),
        ({"x509_pem_cert": [b"nonsense"]}, CredentialInvalid),
        # Before the certificate is parsed.
        ({"x509_pem_cert": [b"nonsense"], "ssl_tls_version": [b"TLSv1.2"]}, TlsVersionTooOld),
    ],
)
def test_f01_f11_connections_that_prove_nothing(
    reader: Issued, changes: dict[str, list[bytes]], error: type[Unauthenticated]
) -> None:
    with pytest.raises(error):
        authenticator().authenticate(context(reader) | changes)


@pytest.mark.parametrize("missing", ["transport_security_type", "ssl_tls_version", "x509_pem_cert"])
def test_f01_what_grpc_does_not_say_is_not_assumed(reader: Issued, missing: str) -> None:
    told = context(reader)
    del told[missing]
    with pytest.raises(Unauthenticated):
        authenticator().authenticate(told)


def test_f03_another_trust_domain_is_not_remembered_either(authority: TestAuthority) -> None:
    foreign = authority.issue(uris("spiffe://elsewhere.example/reader"))
    asked = authenticator()
    for _ in range(2):
        with pytest.raises(TrustDomainUnknown):
            asked.authenticate(context(foreign))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ca": True},
        {"key_usage": key_usage(digital_signature=False)},
        {"key_usage": key_usage(digital_signature=True, key_cert_sign=True)},
        {"key_usage": key_usage(digital_signature=True, crl_sign=True)},
        {"usages": (SERVER_AUTH,)},
        {"usages": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)},
    ],
)
def test_f04_leaves_that_may_not_be_clients(
    authority: TestAuthority, wrong: dict[str, Any]
) -> None:
    with pytest.raises(CredentialInvalid):
        authenticator().authenticate(context(authority.issue(uris(ID), **wrong)))


@pytest.mark.parametrize(
    "right",
    [
        {"ca": None},
        {"usages": None},
        {"usages": (SERVER_AUTH, CLIENT_AUTH)},
        {"key_usage": key_usage(digital_signature=True)},
    ],
)
def test_f04_leaves_that_may(authority: TestAuthority, right: dict[str, Any]) -> None:
    assert authenticator().authenticate(context(authority.issue(uris(ID), **right))).id == ID


@pytest.mark.parametrize(
    "names",
    [[], uris(ID, ID), uris(ID, "https://example.com/"), uris(f"{ID}/"), [x509.DNSName(ID)]],
)
def test_f05_f06_f07_not_exactly_one_spiffe_id(
    authority: TestAuthority, names: list[x509.GeneralName]
) -> None:
    with pytest.raises(SpiffeIdInvalid):
        authenticator().authenticate(context(authority.issue(names)))


def test_f08_times_are_compared_at_every_call(reader: Issued) -> None:
    certificate = x509.load_pem_x509_certificate(reader.certificate)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    clock = MovableClock(begins)
    asked = Authenticator(["test.example"], clock)
    instant = timedelta(microseconds=1)
    for good in (begins, begins + instant, ends - instant):
        clock.time = good
        asked.authenticate(context(reader))
    for expired in (ends, ends + instant):
        clock.time = expired
        with pytest.raises(CredentialExpired):
            asked.authenticate(context(reader))
    clock.time = begins - instant
    with pytest.raises(CredentialInvalid, match=r"^the client certificate is not valid yet$"):
        asked.authenticate(context(reader))


def test_f16_a_parsers_words_stay_inside() -> None:
    canary = b"-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----\n"
    with pytest.raises(CredentialInvalid) as caught:
        authenticator().authenticate(context(None, x509_pem_cert=[canary]))
    assert caught.value.message == CredentialInvalid.default_message
    assert caught.value.__cause__ is not None


def test_certificates_are_parsed_once_and_bounded(
    authority: TestAuthority, reader: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "_CACHED_CERTIFICATES", 2)
    looks: list[bool] = []
    asked = authenticator(looked_up=looks.append)
    others = [authority.client(f"other/{number}") for number in range(2)]
    for identity in (reader, reader, others[0], reader, others[1]):
        asked.authenticate(context(identity))
    # The reader was asked for after the first of the others: that one went.
    for identity in (reader, others[0]):
        asked.authenticate(context(identity))
    assert looks == [False, True, False, True, False, True, False]


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_token_alone_is_its_principal(scheme: str) -> None:
    tokens = OneToken()
    metadata = [bearer(f"{scheme}  {TOKEN} "), (INSTANCE_HEADER, INSTANCE)]
    principal = authenticator(tokens).authenticate(context(), metadata)
    assert (principal.id, principal.instance) == ("oidc:corp:ana", INSTANCE)
    assert not principal.instance_proven
    assert tokens.seen == [TOKEN]


def test_a_token_bound_to_a_key_is_that_instance_whatever_is_claimed() -> None:
    bound = OneToken(instance="b0" * 32)
    metadata = [bearer(), (INSTANCE_HEADER, INSTANCE)]
    assert authenticator(bound).authenticate(context(), metadata).instance == "b0" * 32


@pytest.mark.parametrize(
    "claims",
    [
        [],
        [INSTANCE, INSTANCE],
        [INSTANCE[1:]],
        [f"{INSTANCE}0"],
        [INSTANCE.upper()],
        [f"{INSTANCE}\n"],
        [INSTANCE.encode()],
    ],
)
def test_an_instance_that_is_none_is_all_zero(claims: list[str | bytes]) -> None:
    metadata = [bearer(), *((INSTANCE_HEADER, claim) for claim in claims)]
    assert authenticator(OneToken()).authenticate(context(), metadata).instance == "0" * 64


@pytest.mark.parametrize(
    "said", [f"Basic {TOKEN}", "Bearer", TOKEN, "", f"Bearer {TOKEN}".encode()]
)
def test_f12_what_is_no_bearer_token_is_refused(said: str | bytes) -> None:
    with pytest.raises(TokenInvalid):
        authenticator(OneToken()).authenticate(context(), [bearer(said)])


def test_f01_no_token_where_one_is_needed() -> None:
    with pytest.raises(CredentialMissing):
        authenticator(OneToken()).authenticate(context(), [("x-spiffe-id", ID)])


def test_a_token_where_none_is_taken() -> None:
    with pytest.raises(CredentialMissing):
        authenticator().authenticate(context(), [bearer()])


# --- both ----------------------------------------------------------------------------------------


def test_f15_two_tokens_or_one_that_nobody_reads_conflict(reader: Issued) -> None:
    tokens = OneToken()
    for asked, told, count in (
        (authenticator(tokens), context(), 2),
        (authenticator(tokens), context(reader), 2),
        (authenticator(), context(reader), 1),
    ):
        with pytest.raises(CredentialConflict):
            asked.authenticate(told, [bearer()] * count)
    assert tokens.seen == []


def test_f15_a_token_of_another_certificate_conflicts(
    authority: TestAuthority, reader: Issued
) -> None:
    other = authority.client("reader")
    for certificate in ("", fingerprint(other), fingerprint(reader).upper()):
        asked = authenticator(OneToken(certificate=certificate))
        with pytest.raises(CredentialConflict):
            asked.authenticate(context(reader), [bearer()])


def test_a_token_bound_to_the_certificate_adds_what_it_says(reader: Issued) -> None:
    asked = authenticator(OneToken(certificate=fingerprint(reader)))
    alone = asked.authenticate(context(reader))
    both = asked.authenticate(context(reader), [bearer()])
    assert both == replace(
        alone,
        issuer="corp",
        subject="ana",
        groups=("corp:officers",),
        claims=(("site", ("north",)),),
    )
    # Of that call only.
    assert asked.authenticate(context(reader)) == alone


def test_an_expired_certificate_is_not_helped_by_a_token(reader: Issued) -> None:
    tokens = OneToken(certificate=fingerprint(reader))
    asked = Authenticator(["test.example"], MovableClock(NOW + 2 * HOUR), tokens=tokens)
    with pytest.raises(CredentialExpired):
        asked.authenticate(context(reader), [bearer()])
    assert tokens.seen == []
