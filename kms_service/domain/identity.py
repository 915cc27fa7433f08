"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

OIDC = "oidc:"
SPIFFE = "spiffe://"

Claims = tuple[tuple[str, tuple[str, ...]], ...]
"""Names and values of verified claims, both sorted: hashable, and one form for one meaning."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated identity.

    Attributes:
        id: SPIFFE ID, as the certificate has it (never normalised); of a token
            `oidc:{issuer name}:{subject}`.
        trust_domain: the SPIFFE ID's authority; empty for a token.
        path: the SPIFFE ID's path, with leading slash; empty for a token.
        instance: SHA-256 of the TLS key's SPKI, 64 hexadecimal digits; of a token, the key's
            thumbprint that it is bound to (`cnf`), else what the client says of itself.
        issuer: configured name of the token's issuer; empty for a certificate.
        subject: of the token; empty for a certificate.
        groups: that its token says it is in, sorted, each as `{issuer name}:{group}`.
        claims: of its token.
        instance_proven: the caller has shown to hold the instance's key.
    """

    id: str
    trust_domain: str
    path: str
    instance: str
    issuer: str = ""
    subject: str = ""
    groups: tuple[str, ...] = ()
    claims: Claims = ()
    instance_proven: bool = True

    def __hash__(self) -> int:
        """Of what tells most apart: caches look principals up at every call."""
        return hash((self.id, self.instance))


def principal_of(principal_id: str, instance: str = "0" * 64) -> Principal:
    """What an id alone says of its principal: no groups, no claims.

    Raises:
        ValueError: neither a SPIFFE ID nor `oidc:{issuer name}:{subject}`.
    """
    if principal_id.startswith(SPIFFE):
        trust_domain, slash, path = principal_id.removeprefix(SPIFFE).partition("/")
        if trust_domain:
            return Principal(principal_id, trust_domain, slash + path, instance)
    issuer, colon, subject = principal_id.removeprefix(OIDC).partition(":")
    if principal_id.startswith(OIDC) and issuer and colon and subject:
        return Principal(
            principal_id, "", "", instance, issuer=issuer, subject=subject, instance_proven=False
        )
    raise ValueError("neither a SPIFFE ID nor oidc:{issuer name}:{subject}")


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A bearer token whose signature, issuer and audience are right.

    Attributes:
        not_before, expires: when it holds; compared anew at each call.
        certificate: SHA-256 of the client certificate that it is bound to (RFC 8705),
            hexadecimal; empty if it is bound to none.
    """

    principal: Principal
    not_before: datetime
    expires: datetime
    certificate: str


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal and what is known of this one call.

    Attributes:
        principal: who.
        request_id: random id of the call, 32 hexadecimal digits; in logs and audit.
        peer: network address as gRPC tells it (`ipv4:127.0.0.1:5`).
        method: full gRPC method (`/modelkms_api.v1.KeyService/LeaseDataKey`).
        client_version: of our SDK, as it says itself (`0.1.0`); empty if it does not.
        trace_id: of the trace that the caller says this call belongs to (W3C Trace Context), 32
            hexadecimal digits, or empty. A claim, for finding things again; never identity.
    """

    principal: Principal
    request_id: str
    peer: str
    method: str
    client_version: str = ""
    trace_id: str = ""
