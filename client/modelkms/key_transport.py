"""Key transport, the client's side (docs/spec/key-transport-v1.md).

Each request offers an ephemeral public key and a fresh nonce; the answer is opened only if all that
was agreed is bound into it. Anything else is `KeyAnswerInvalid`: not retried, nothing decrypted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from google.protobuf.duration_pb2 import Duration
from modelkms_api import key_transport as layout
from modelkms_api.v1.key_transport_pb2 import (
    KEY_TRANSPORT_SUITE_MLKEM768_X25519_HKDF_SHA256_AES256GCM as HYBRID,
)
from modelkms_api.v1.key_transport_pb2 import (
    KEY_TRANSPORT_SUITE_X25519_HKDF_SHA256_AES256GCM as CLASSIC,
)
from modelkms_api.v1.key_transport_pb2 import ClientKey, EncryptedDataKey, KeyTransportSuite

from modelkms.errors import KeyAnswerInvalid
from modelkms.secret import SecretBytes

KEY_LIFETIME_S = 600.0
"""An ephemeral pair serves ten minutes, then a new one is made (DESIGN §6)."""

_ANSWER_GRACE_S = 120.0
"""An answer on its way when the pair ends is still opened: longer than any call's deadline."""

_TAG_BYTES = 16
_NANOSECONDS_PER_MILLISECOND = 1_000_000


def boottime_s() -> float:
    """Seconds that go on while the machine sleeps: a suspended client's time runs out too."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class Binding:
    """What an answer must be bound to (key-transport-v1 §5).

    Attributes:
        purpose: `lease` or `publish`.
        principal: this client's SPIFFE ID.
        version_uid: 32 lower-case hexadecimal digits.
        lease: resource name; empty for `publish`.
        pin: `layout.pin_bytes(…)`; empty for `publish`.
        lease_duration: as the answer tells it; None for `publish`.
    """

    purpose: str
    principal: str
    version_uid: str
    lease: str = ""
    pin: bytes = b""
    lease_duration: Duration | None = None


class KeyTransport:
    """Makes offers under one ephemeral pair at a time. Safe to use from several threads."""

    def __init__(
        self, clock: Callable[[], float] = boottime_s, *, hybrid: bool | None = None
    ) -> None:
        """`hybrid`: None takes ML-KEM-768 + X25519 where the library has it."""
        self._clock = clock
        self._hybrid = hybrid
        self._lock = threading.Lock()
        self._pair: _Pair | None = None

    def offer(self) -> KeyOffer:
        """An offer for exactly one request."""
        with self._lock:
            pair, now = self._pair, self._clock()
            # A forked child must not use its parent's pair: two processes, one key.
            if pair is None or now >= pair.end_s or pair.process != os.getpid():
                self._pair = pair = _new_pair(self._hybrid, now + KEY_LIFETIME_S)
        return KeyOffer(pair, os.urandom(layout.MAX_REQUEST_NONCE_BYTES), self._clock)

    def forget(self) -> None:
        """Drop the pair; answers to offers that are out can still be opened."""
        with self._lock:
            self._pair = None


@dataclass(frozen=True, slots=True)
class _Pair:
    suite_number: KeyTransportSuite.ValueType
    suite: Suite
    private_key: MLKEM768X25519PrivateKey | X25519PrivateKey = field(repr=False)
    public_key: bytes
    end_s: float
    process: int


class KeyOffer:
    """One request's public key and nonce, and the opening of its one answer."""

    def __init__(self, pair: _Pair, nonce: bytes, clock: Callable[[], float]) -> None:
        self._pair = pair
        self._nonce = nonce
        self._clock = clock
        self._lock = threading.Lock()
        self._used = False

    @property
    def message(self) -> ClientKey:
        """What goes into the request."""
        return ClientKey(
            suite=self._pair.suite_number,
            public_key=self._pair.public_key,
            request_nonce=self._nonce,
        )

    def open(self, answer: EncryptedDataKey, binding: Binding) -> SecretBytes:
        """The 32-byte data key.

        Raises:
            KeyAnswerInvalid: the answer is malformed, was opened before, came after the pair's
                end, or is not bound to this offer and `binding`.
        """
        session = answer.session
        if session.suite != self._pair.suite_number:
            raise _invalid("it is of another suite than was offered")
        if len(session.session_id) != layout.SESSION_ID_BYTES:
            raise _invalid("its session id has a wrong length")
        if len(answer.nonce) != layout.NONCE_BYTES:
            raise _invalid("its nonce has a wrong length")
        if len(answer.ciphertext) != layout.DATA_KEY_BYTES + _TAG_BYTES:
            raise _invalid("its ciphertext has a wrong length")
        aad = layout.answer_aad(
            purpose=binding.purpose,
            request_nonce=self._nonce,
            lease=binding.lease,
            version_uid=binding.version_uid,
            pin=binding.pin,
            lease_duration_ms=_milliseconds(binding.lease_duration),
        )
        info = layout.hpke_info(
            suite=self._pair.suite_number,
            principal=binding.principal,
            client_public_key=self._pair.public_key,
            session_id=session.session_id,
        )
        self._use()
        try:
            secret = self._pair.suite.decrypt(
                session.encrypted_secret, self._pair.private_key, info=info
            )
            if len(secret) != layout.SESSION_SECRET_BYTES:
                raise _invalid("its session secret has a wrong length")
            return SecretBytes(AESGCM(secret).decrypt(answer.nonce, answer.ciphertext, aad))
        except (InvalidTag, ValueError):
            raise _invalid("it was changed, or made for another request") from None

    def _use(self) -> None:
        """One offer, one answer, in time: a replayed or late answer is none."""
        with self._lock:
            if self._used:
                raise _invalid("an answer to this request was opened before")
            if self._clock() >= self._pair.end_s + _ANSWER_GRACE_S:
                raise _invalid("it came after the end of the key it was made for")
            self._used = True


def _new_pair(hybrid: bool | None, end_s: float) -> _Pair:
    exchange = X25519PrivateKey.generate()
    exchange_public = exchange.public_key().public_bytes_raw()
    if hybrid is not False:
        try:
            encapsulation = MLKEM768PrivateKey.generate()
        except UnsupportedAlgorithm:
            if hybrid:
                raise
        else:
            return _Pair(
                HYBRID,
                Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
                MLKEM768X25519PrivateKey(encapsulation, exchange),
                encapsulation.public_key().public_bytes_raw() + exchange_public,
                end_s,
                os.getpid(),
            )
    return _Pair(
        CLASSIC,
        Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
        exchange,
        exchange_public,
        end_s,
        os.getpid(),
    )


def _milliseconds(duration: Duration | None) -> int:
    """The bound form; a duration that says more than that is not what was bound."""
    if duration is None:
        return 0
    if duration.nanos % _NANOSECONDS_PER_MILLISECOND or duration.seconds < 0 or duration.nanos < 0:
        raise _invalid("its lease duration is not in whole milliseconds")
    return duration.seconds * 1000 + duration.nanos // _NANOSECONDS_PER_MILLISECOND


def _invalid(why: str) -> KeyAnswerInvalid:
    return KeyAnswerInvalid(f"the service's key answer is not valid: {why}")
