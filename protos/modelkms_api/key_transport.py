"""Byte layouts of key transport (docs/spec/key-transport-v1.md): what is bound to what.

No cryptography here, so that service and client cannot drift apart in what they bind.
"""

from __future__ import annotations

from modelkms_api.encoding import length_prefixed

PROTOCOL = b"modelkms-key-transport-v1"
ANSWER = b"modelkms-key-answer-v1"

MLKEM768_PUBLIC_KEY_BYTES = 1184
"""FIPS 203, table 3: encapsulation key of ML-KEM-768."""
X25519_PUBLIC_KEY_BYTES = 32
"""RFC 7748 §5."""

SESSION_ID_BYTES = 16
SESSION_SECRET_BYTES = 32
NONCE_BYTES = 12
DATA_KEY_BYTES = 32
MIN_REQUEST_NONCE_BYTES = 16
MAX_REQUEST_NONCE_BYTES = 32

PURPOSE_LEASE = "lease"
PURPOSE_PUBLISH = "publish"


def hpke_info(*, suite: int, principal: str, client_public_key: bytes, session_id: bytes) -> bytes:
    """The HPKE `info` under which a session secret is encrypted (key-transport-v1 §4).

    Args:
        suite: number of the `KeyTransportSuite`.
        principal: the client's identity as the service authenticated it (SPIFFE ID).
        client_public_key: wire encoding of the client's public key.
        session_id: 16 bytes.
    """
    return length_prefixed(
        PROTOCOL, suite.to_bytes(2, "big"), principal.encode(), client_public_key, session_id
    )


def pin_bytes(*, length_bytes: int, floe_header_tag: bytes, digest: bytes) -> bytes:
    """The bound form of an artifact pin (artifact-v1 §6): u64 length, tag, digest."""
    return length_prefixed(length_bytes.to_bytes(8, "big"), floe_header_tag, digest)


def answer_aad(
    *,
    purpose: str,
    request_nonce: bytes,
    lease: str,
    version_uid: str,
    pin: bytes,
    lease_duration_ms: int,
) -> bytes:
    """The associated data under which a data key is encrypted (key-transport-v1 §5).

    Args:
        purpose: `PURPOSE_LEASE` or `PURPOSE_PUBLISH`.
        request_nonce: of the request that is answered.
        lease: resource name of the lease; empty for `publish`.
        version_uid: 32 lower-case hexadecimal digits.
        pin: `pin_bytes(…)`; empty for `publish`.
        lease_duration_ms: milliseconds; 0 for `publish`.
    """
    return length_prefixed(
        ANSWER,
        purpose.encode(),
        request_nonce,
        lease.encode(),
        version_uid.encode(),
        pin,
        lease_duration_ms.to_bytes(8, "big"),
    )
