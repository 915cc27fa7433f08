"""How a data key travels to a client."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from kms_service.domain.secret import SecretBytes


@dataclass(frozen=True, slots=True)
class ClientKey:
    """The client's ephemeral public key, checked (key-transport-v1 §3)."""

    suite: int
    public_key: bytes
    request_nonce: bytes


@dataclass(frozen=True, slots=True)
class KeyAnswerBinding:
    """What a key answer is bound to (key-transport-v1 §5)."""

    purpose: str
    lease: str
    version_uid: str
    pin: bytes
    lease_duration: timedelta


@dataclass(frozen=True, slots=True)
class EncryptedDataKey:
    """As in key_transport.proto."""

    suite: int
    session_id: bytes
    encrypted_secret: bytes
    nonce: bytes
    ciphertext: bytes


class KeyTransport(Protocol):
    def check(self, client_key: ClientKey) -> None:
        """
        Raises:
            RecipientKeyInvalid: not a key of its suite (called before Vault is).
        """

    def encrypt(
        self,
        data_key: SecretBytes,
        principal: str,
        client_key: ClientKey,
        binding: KeyAnswerBinding,
    ) -> EncryptedDataKey:
        """The data key, readable by the holder of the client key only."""
