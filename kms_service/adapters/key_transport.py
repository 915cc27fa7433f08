"""Key transport, the service's side (docs/spec/key-transport-v1.md): HPKE (RFC 9180), single shot,
base mode, to an ephemeral key of the client, once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite
from modelkms_api import key_transport as layout
from modelkms_api.v1.key_transport_pb2 import (
    KEY_TRANSPORT_SUITE_MLKEM768_X25519_HKDF_SHA256_AES256GCM as HYBRID,
)
from modelkms_api.v1.key_transport_pb2 import (
    KEY_TRANSPORT_SUITE_X25519_HKDF_SHA256_AES256GCM as CLASSIC,
)

from kms_service.adapters.clock import boottime_s
from kms_service.adapters.key_transport_sessions import SessionTable
from kms_service.domain.errors import RecipientKeyInvalid
from kms_service.domain.ports import ClientKey, EncryptedDataKey, KeyAnswerBinding
from kms_service.domain.secret import SecretBytes

_MILLISECOND = timedelta(milliseconds=1)

_P = 2**255 - 19
_LOW_ORDER_U = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""u-coordinates of the points of order 1, 2, 4 and 8 on Curve25519 and its twist, modulo p
(https://cr.yp.to/ecdh.html#validate): a shared secret with any of them is all zero (RFC 7748 §6.1),
whatever the other side's key."""


class HpkeKeyTransport:
    """Encrypts data keys under the secret of a session with the client key (key-transport-v1 §4,
    §5). Implements `domain.ports.KeyTransport`. Safe to use from several threads.

    Args:
        sessions: those of this process; they must not outlive it nor be shared with another.
        looked_up: told of each look for a session to go on with, whether there was one.
    """

    def __init__(
        self,
        sessions: SessionTable | None = None,
        *,
        looked_up: Callable[[bool], None] = lambda _found: None,
    ) -> None:
        if sessions is None:
            sessions = SessionTable(boottime_s, looked_up=looked_up)
        self._sessions = sessions

    def check(self, client_key: ClientKey) -> None:
        """
        Raises:
            RecipientKeyInvalid: unknown suite; a public key of another length, not an ML-KEM-768
                encapsulation key (FIPS 203 §7.2) or a low-order point; a nonce not of 16 to 32
                bytes.
        """
        _check_nonce(client_key)
        if not self._sessions.knows(client_key):
            _recipient(client_key)

    def encrypt(
        self,
        data_key: SecretBytes,
        principal: str,
        client_key: ClientKey,
        binding: KeyAnswerBinding,
    ) -> EncryptedDataKey:
        """The 32-byte data key, readable by the holder of the client's private key only.

        Args:
            principal: the SPIFFE ID as authenticated.

        Raises:
            RecipientKeyInvalid: as `check`.
            ValueError: `data_key` is not 32 bytes, or the binding's duration is not of whole
                milliseconds: a defect of the caller.
        """
        _check_nonce(client_key)
        if len(data_key) != layout.DATA_KEY_BYTES:
            raise ValueError("a data key has 32 bytes")
        if binding.lease_duration % _MILLISECOND:
            raise ValueError("a lease lasts whole milliseconds")

        def encrypt_secret(session_id: bytes, secret: bytearray) -> bytes:
            # key-transport-v1 §4: the secret is bound to protocol, suite, principal, client key
            # and session.
            recipient = _recipient(client_key)
            info = layout.hpke_info(
                suite=client_key.suite,
                principal=principal,
                client_public_key=client_key.public_key,
                session_id=session_id,
            )
            return recipient.suite.encrypt(secret, recipient.public_key, info=info)

        session = self._sessions.for_one_answer(principal, client_key, encrypt_secret)
        # KT-10. Random, for replicas and threads count nothing together; KT-8 bounds how many
        # there are under one secret, so that none comes twice.
        nonce = os.urandom(layout.NONCE_BYTES)
        # key-transport-v1 §5: the data key is bound to request, lease, version and pin.
        ciphertext = session.cipher.encrypt(
            nonce,
            data_key.reveal(),
            layout.answer_aad(
                purpose=binding.purpose,
                request_nonce=client_key.request_nonce,
                lease=binding.lease,
                version_uid=binding.version_uid,
                pin=binding.pin,
                lease_duration_ms=binding.lease_duration // _MILLISECOND,
            ),
        )
        return EncryptedDataKey(
            suite=client_key.suite,
            session_id=session.session_id,
            encrypted_secret=session.encrypted_secret,
            nonce=nonce,
            ciphertext=ciphertext,
        )

    def forget_ended_sessions(self) -> None:
        """Let go of secrets whose time is over. Called now and then."""
        self._sessions.forget_ended()

    @property
    def sessions(self) -> int:
        """How many there are, for metrics."""
        return len(self._sessions)


@dataclass(frozen=True, slots=True)
class _Recipient:
    suite: Suite
    public_key: MLKEM768X25519PublicKey | X25519PublicKey


def _check_nonce(client_key: ClientKey) -> None:
    nonce_bytes = len(client_key.request_nonce)
    if not layout.MIN_REQUEST_NONCE_BYTES <= nonce_bytes <= layout.MAX_REQUEST_NONCE_BYTES:
        raise RecipientKeyInvalid


def _recipient(client_key: ClientKey) -> _Recipient:
    encoded = client_key.public_key
    try:
        if client_key.suite == HYBRID:
            mlkem, x25519 = _split(encoded)
            key = MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(mlkem), _point(x25519)
            )
            return _Recipient(Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM), key)
        if client_key.suite == CLASSIC:
            return _Recipient(Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM), _point(encoded))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RecipientKeyInvalid from error
    raise RecipientKeyInvalid


def _split(encoded: bytes) -> tuple[bytes, bytes]:
    """key-transport-v1 §3: the ML-KEM-768 encapsulation key, then the X25519 key."""
    if len(encoded) != layout.MLKEM768_PUBLIC_KEY_BYTES + layout.X25519_PUBLIC_KEY_BYTES:
        raise ValueError("a hybrid public key has 1,216 bytes")
    return encoded[: layout.MLKEM768_PUBLIC_KEY_BYTES], encoded[layout.MLKEM768_PUBLIC_KEY_BYTES :]


def _point(encoded: bytes) -> X25519PublicKey:
    key = X25519PublicKey.from_public_bytes(encoded)
    # RFC 7748 §5: the highest bit is ignored, and encodings from p on are reduced.
    u = int.from_bytes(encoded, "little") & (2**255 - 1)
    if u % _P in _LOW_ORDER_U:
        raise ValueError("a low-order point")
    return key
