"""A second reading of docs/spec/key-transport-v1.md: opens answers from its text alone, with an
encoder of its own, so that a mistake in the shared layouts shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from tests.support.planted_secrets import DATA_KEY, plant

SUITES = {1: KEM.MLKEM768_X25519, 2: KEM.X25519}


@dataclass(frozen=True)
class PrivateKey:
    """An ephemeral pair of the client; `seed` as §8 has it."""

    suite: int
    x25519: X25519PrivateKey
    mlkem: MLKEM768PrivateKey | None = None

    @classmethod
    def from_seed(cls, suite: int, seed: bytes) -> PrivateKey:
        """Suite 1: 32 bytes, expanded as §8 says. Suite 2: the X25519 key itself."""
        if suite == 2:
            return cls(suite, X25519PrivateKey.from_private_bytes(seed))
        expanded = hashlib.shake_256(seed).digest(96)
        return cls(
            suite,
            X25519PrivateKey.from_private_bytes(expanded[64:]),
            MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        )

    @property
    def public_bytes(self) -> bytes:
        first = self.mlkem.public_key().public_bytes_raw() if self.mlkem else b""
        return first + self.x25519.public_key().public_bytes_raw()

    def open_secret(self, encrypted_secret: bytes, info: bytes) -> bytes:
        key = MLKEM768X25519PrivateKey(self.mlkem, self.x25519) if self.mlkem else self.x25519
        suite = Suite(SUITES[self.suite], KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        return suite.decrypt(encrypted_secret, key, info=info)


def lp(*parts: bytes) -> bytes:
    """§2."""
    encoded = bytearray()
    for part in parts:
        encoded += len(part).to_bytes(4, "big")
        encoded += part
    return bytes(encoded)


def info(suite: int, principal: str, public_key: bytes, session_id: bytes) -> bytes:
    """§4."""
    return lp(
        b"modelkms-key-transport-v1",
        suite.to_bytes(2, "big"),
        principal.encode(),
        public_key,
        session_id,
    )


def pin(length_bytes: int, floe_header_tag: bytes, digest: bytes) -> bytes:
    """§5, the row `pin`."""
    return lp(length_bytes.to_bytes(8, "big"), floe_header_tag, digest)


def aad(
    purpose: str,
    request_nonce: bytes,
    lease: str,
    version_uid: str,
    pin_part: bytes,
    lease_duration_ms: int,
) -> bytes:
    """§5."""
    return lp(
        b"modelkms-key-answer-v1",
        purpose.encode(),
        request_nonce,
        lease.encode(),
        version_uid.encode(),
        pin_part,
        lease_duration_ms.to_bytes(8, "big"),
    )


def open_data_key(secret: bytes, nonce: bytes, ciphertext: bytes, answer_aad: bytes) -> bytes:
    """§5."""
    data_key = AESGCM(secret).decrypt(nonce, ciphertext, answer_aad)
    plant(DATA_KEY, data_key)
    return data_key
