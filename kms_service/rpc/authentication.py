"""Who calls: the identity in the verified client certificate, or in a bearer token.

TLS has verified the chain before any of this runs. It never looks again, so what can change
during a connection (time) is checked at every call.

Two ports, one rule: the mTLS port demands a certificate in the handshake, the token port never
asks for one. So a call without a certificate came by the token port.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
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
)
from kms_service.domain.identity import Principal
from kms_service.domain.ports import Clock, TokenVerifier
from kms_service.rpc.spiffe import NotASpiffeId, SpiffeId, parse_spiffe_id

_CACHED_CERTIFICATES = 4096
_TLS_VERSION = b"TLSv1.3"
_NO_INSTANCE = "0" * 64
INSTANCE_HEADER = "x-modelkms-instance"
"""Where a client says which instance it is, if its token is bound to no key."""

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)

AuthContext = Mapping[str, Iterable[bytes]]
"""As `grpc.ServicerContext.auth_context()` gives it: property name to its values."""


@dataclass(frozen=True, slots=True)
class _Credential:
    principal: Principal
    sha256: str
    not_before: datetime
    not_after: datetime


class Authenticator:
    """Identities from client certificates and tokens. Safe to use from many threads.

    Args:
        trust_domains: those served.
        clock: logical time, so that an expired certificate never revives.
        looked_up: told of each look for a certificate already parsed, whether it was there.
        tokens: verifies bearer tokens; None: none is taken.
    """

    def __init__(
        self,
        trust_domains: Iterable[str],
        clock: Clock,
        looked_up: Callable[[bool], None] = lambda _found: None,
        tokens: TokenVerifier | None = None,
    ) -> None:
        self._tokens = tokens
        self._trust_domains = frozenset(trust_domains)
        self._clock = clock
        self._looked_up = looked_up
        self._known: OrderedDict[bytes, _Credential] = OrderedDict()
        self._lock = threading.Lock()

    def authenticate(
        self, auth_context: AuthContext, metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> Principal:
        """The caller's identity.

        `x-spiffe-id` and their like are ignored. A bearer token beside a certificate must be bound
        to it (RFC 8705): then its claims and groups are added. Any other is refused rather than
        guessed about (F15).

        Raises:
            CredentialMissing, TlsVersionTooOld, CredentialInvalid, CredentialExpired,
            SpiffeIdInvalid, TrustDomainUnknown, CredentialConflict, TokenInvalid.
            IdentityProviderUnavailable: an outage.
        """
        if _only(auth_context, "transport_security_type") != b"ssl":
            raise CredentialMissing
        # Before anything is parsed: an old TLS is no place to look at credentials (F11).
        if _only(auth_context, "ssl_tls_version") != _TLS_VERSION:
            raise TlsVersionTooOld
        pem = _only(auth_context, "x509_pem_cert")
        authorization = [value for key, value in metadata if key == "authorization"]
        if len(authorization) > 1 or (authorization and pem and self._tokens is None):
            raise CredentialConflict
        if pem is None:
            return self._by_token(authorization, metadata)
        credential = self._credential(pem)
        now = self._clock.now()
        if now >= credential.not_after:
            raise CredentialExpired
        if now < credential.not_before:
            raise CredentialInvalid("the client certificate is not valid yet")
        if authorization:
            return self._with_token(credential, authorization[0])
        return credential.principal

    def _by_token(
        self, authorization: list[str | bytes], metadata: Sequence[tuple[str, str | bytes]]
    ) -> Principal:
        if self._tokens is None or not authorization:
            raise CredentialMissing
        principal = self._tokens.verify(_bearer(authorization[0])).principal
        if principal.instance:
            return principal
        # Bound to no key: the client may say which instance it is, and nobody has to believe it.
        return replace(principal, instance=_claimed_instance(metadata))

    def _with_token(self, credential: _Credential, authorization: str | bytes) -> Principal:
        """The certificate's identity, with what a token says that is bound to that certificate."""
        assert self._tokens is not None
        token = self._tokens.verify(_bearer(authorization))
        if token.certificate != credential.sha256:
            raise CredentialConflict
        said = token.principal
        return replace(
            credential.principal,
            issuer=said.issuer,
            subject=said.subject,
            groups=said.groups,
            claims=said.claims,
        )

    def _credential(self, pem: bytes) -> _Credential:
        """Parsed once a certificate; its times are compared anew at every call."""
        with self._lock:
            known = self._known.get(pem)
            if known is not None:
                self._known.move_to_end(pem)
        self._looked_up(known is not None)
        if known is not None:
            return known
        credential = _parse(pem)
        if credential.principal.trust_domain not in self._trust_domains:
            raise TrustDomainUnknown
        with self._lock:
            self._known[pem] = credential
            while len(self._known) > _CACHED_CERTIFICATES:
                self._known.popitem(last=False)
        return credential


def _only(auth_context: AuthContext, name: str) -> bytes | None:
    values = list(auth_context.get(name, ()))
    return values[0] if len(values) == 1 else None


def _bearer(authorization: str | bytes) -> str:
    """The token of `Bearer …` (RFC 6750)."""
    if not isinstance(authorization, str):
        raise TokenInvalid
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise TokenInvalid
    return token.strip()


def _claimed_instance(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    said = [value for key, value in metadata if key == INSTANCE_HEADER]
    if len(said) == 1 and isinstance(said[0], str) and re.fullmatch(r"[0-9a-f]{64}", said[0]):
        return said[0]
    return _NO_INSTANCE


def _parse(pem: bytes) -> _Credential:
    # A parser's message may quote the certificate: it is kept as the cause, for nobody's eyes
    # outside (F16).
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension) as error:
        raise CredentialInvalid from error
    _check_leaf(extensions)
    spiffe_id = _spiffe_id(extensions)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _Credential(
        Principal(
            id=str(spiffe_id),
            trust_domain=spiffe_id.trust_domain,
            path=spiffe_id.path,
            instance=hashlib.sha256(spki).hexdigest(),
        ),
        certificate.fingerprint(hashes.SHA256()).hex(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _check_leaf(extensions: x509.Extensions) -> None:
    """X509-SVID §4: a leaf is no CA, signs no certificates, and may authenticate a client."""
    constraints = _extension(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CredentialInvalid
    usage = _extension(extensions, x509.KeyUsage)
    if usage is not None and (not usage.digital_signature or usage.key_cert_sign or usage.crl_sign):
        raise CredentialInvalid
    extended = _extension(extensions, x509.ExtendedKeyUsage)
    if extended is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in extended:
        raise CredentialInvalid


def _spiffe_id(extensions: x509.Extensions) -> SpiffeId:
    """X509-SVID §2: exactly one URI SAN. Other kinds of SAN and the CN say nothing (F05, F06)."""
    names = _extension(extensions, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if len(uris) != 1:
        raise SpiffeIdInvalid
    try:
        return parse_spiffe_id(uris[0])
    except NotASpiffeId as error:
        raise SpiffeIdInvalid from error


def _extension(extensions: x509.Extensions, kind: type[ExtensionT]) -> ExtensionT | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
