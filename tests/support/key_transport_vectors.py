"""Makes tests/vectors/key-transport-v1.json (docs/spec/key-transport-v1.md §8):

python -m tests.support.key_transport_vectors > tests/vectors/key-transport-v1.json

Private keys, nonces and data keys are fixed; the service's own random values differ from run to
run and are recorded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import timedelta
from typing import Any

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.domain.ports import ClientKey, KeyAnswerBinding
from kms_service.domain.secret import SecretBytes
from tests.support import key_transport_opener as opener

PRINCIPAL = "spiffe://demo.example/reader"
LEASE = "projects/camera/leases/0123456789abcdef0123456789abcdef"
VERSION_UID = "fedcba9876543210fedcba9876543210"


def main() -> None:
    vectors = [
        _vector("lease, X25519", suite=2, purpose="lease", nonce_bytes=32),
        _vector("lease, ML-KEM-768 + X25519", suite=1, purpose="lease", nonce_bytes=32),
        _vector("publish, ML-KEM-768 + X25519", suite=1, purpose="publish", nonce_bytes=16),
        _vector("publish, X25519", suite=2, purpose="publish", nonce_bytes=17),
        *_one_session(("one session, first answer", "one session, second answer")),
    ]
    document = {"specification": "docs/spec/key-transport-v1.md", "vectors": vectors}
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _fixed(label: str, length: int) -> bytes:
    return hashlib.shake_256(f"key-transport-v1 vector: {label}".encode()).digest(length)


def _one_session(names: tuple[str, str]) -> list[dict[str, Any]]:
    """Two answers to one client key: their sessions are equal, nothing else is."""
    transport = HpkeKeyTransport()
    return [
        _vector(
            name,
            suite=1,
            purpose="lease",
            nonce_bytes=32,
            transport=transport,
            key_label="one session",
        )
        for name in names
    ]


def _vector(
    name: str,
    *,
    suite: int,
    purpose: str,
    nonce_bytes: int,
    transport: HpkeKeyTransport | None = None,
    key_label: str | None = None,
) -> dict[str, Any]:
    seed = _fixed(f"{key_label or name} private key", 32)
    key = opener.PrivateKey.from_seed(suite, seed)
    nonce = _fixed(f"{name} request nonce", nonce_bytes)
    data_key = _fixed(f"{name} data key", 32)
    leased = purpose == "lease"
    pin_fields = {
        "length_bytes": 5_000_000_000,
        "floe_header_tag": _fixed("tag", 32).hex(),
        "digest": _fixed("digest", 32).hex(),
    }
    pin = opener.pin(5_000_000_000, _fixed("tag", 32), _fixed("digest", 32)) if leased else b""
    lease, duration_ms = (LEASE, 3_600_000) if leased else ("", 0)

    answer = (transport or HpkeKeyTransport()).encrypt(
        SecretBytes(data_key),
        PRINCIPAL,
        ClientKey(suite, key.public_bytes, nonce),
        KeyAnswerBinding(purpose, lease, VERSION_UID, pin, timedelta(milliseconds=duration_ms)),
    )
    info = opener.info(suite, PRINCIPAL, key.public_bytes, answer.session_id)
    aad = opener.aad(purpose, nonce, lease, VERSION_UID, pin, duration_ms)
    private_key = {"x25519": key.x25519.private_bytes_raw().hex()}
    if suite == 1:
        mlkem_seed = hashlib.shake_256(seed).digest(64).hex()
        private_key = {"seed": seed.hex(), "mlkem_seed": mlkem_seed, **private_key}

    def flipped(value: bytes, at: int) -> str:
        return (value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]).hex()

    return {
        "name": name,
        "suite": suite,
        "private_key": private_key,
        "client_key": {"public_key": key.public_bytes.hex(), "request_nonce": nonce.hex()},
        "principal": PRINCIPAL,
        "binding": {
            "purpose": purpose,
            "lease": lease,
            "version_uid": VERSION_UID,
            "pin": pin_fields if leased else None,
            "lease_duration_ms": duration_ms,
        },
        "info": info.hex(),
        "aad": aad.hex(),
        "answer": {
            "session_id": answer.session_id.hex(),
            "encrypted_secret": answer.encrypted_secret.hex(),
            "nonce": answer.nonce.hex(),
            "ciphertext": answer.ciphertext.hex(),
        },
        "session_secret": key.open_secret(answer.encrypted_secret, info).hex(),
        "data_key": data_key.hex(),
        "invalid": [
            {"field": "principal", "value": "spiffe://demo.example/stranger"},
            {"field": "client_key.request_nonce", "value": flipped(nonce, 0)},
            {"field": "binding.purpose", "value": "publish" if leased else "lease"},
            {"field": "binding.lease", "value": LEASE[:-1] + "0"},
            {"field": "binding.version_uid", "value": VERSION_UID[:-1] + "1"},
            {"field": "binding.lease_duration_ms", "value": duration_ms + 1},
            {"field": "binding.pin", "value": {**pin_fields, "length_bytes": 1}},
            {"field": "answer.session_id", "value": flipped(answer.session_id, 15)},
            {"field": "answer.encrypted_secret", "value": flipped(answer.encrypted_secret, 0)},
            {"field": "answer.encrypted_secret", "value": answer.encrypted_secret[:-1].hex()},
            {"field": "answer.nonce", "value": flipped(answer.nonce, 11)},
            {"field": "answer.ciphertext", "value": flipped(answer.ciphertext, 0)},
            {"field": "answer.ciphertext", "value": flipped(answer.ciphertext, 47)},
            {"field": "answer.ciphertext", "value": answer.ciphertext[:-1].hex()},
        ],
    }


if __name__ == "__main__":
    main()
