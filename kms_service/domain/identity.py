"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated identity.

    Attributes:
        id: SPIFFE ID, as the certificate has it (never normalised).
        trust_domain: its authority.
        path: its path, with leading slash.
        instance: SHA-256 of the TLS key's SPKI, 64 hexadecimal digits.
    """

    id: str
    trust_domain: str
    path: str
    instance: str


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal and what is known of this one call.

    Attributes:
        principal: who.
        request_id: random id of the call, 32 hexadecimal digits; in logs and audit.
        peer: network address as gRPC tells it (`ipv4:127.0.0.1:5`).
        method: full gRPC method (`/modelkms_api.v1.KeyService/LeaseDataKey`).
    """

    principal: Principal
    request_id: str
    peer: str
    method: str
