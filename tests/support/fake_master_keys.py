"""Master keys in memory: AES-GCM under keys derived for each context. Passes the contract suite."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    ServiceError,
    WrappingVersionUnusable,
)
from kms_service.domain.ports import MasterKeyState
from kms_service.domain.secret import SecretBytes


@dataclass
class _MasterKey:
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    min_decryption_version: int = 1
    derived: bool = True
    create_time: datetime = field(default_factory=lambda: datetime.now(UTC))


class FakeMasterKeys:
    """Implements `domain.ports.MasterKeys`. `fail_with` makes every call an outage."""

    def __init__(self) -> None:
        self._keys: dict[str, _MasterKey] = {}
        self._lock = threading.Lock()
        self.calls = 0
        self.fail_with: type[ServiceError] | None = None

    def make(self, master_key: str, *, derived: bool = True) -> None:
        self._keys[master_key] = _MasterKey(derived=derived)

    def take_away(self, master_key: str) -> object:
        """As if it was deleted; what `bring_back` wants."""
        return self._keys.pop(master_key)

    def bring_back(self, master_key: str, taken: object) -> None:
        assert isinstance(taken, _MasterKey)
        self._keys[master_key] = taken

    def rotate(self, master_key: str) -> None:
        self._keys[master_key].versions.append(os.urandom(32))

    def set_min_decryption_version(self, master_key: str, version: int) -> None:
        self._keys[master_key].min_decryption_version = version

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        key = self._key(master_key)
        data_key = os.urandom(32)
        return SecretBytes(data_key), _wrapped(key, data_key, context)

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        key = self._key(master_key)
        if not key.min_decryption_version <= wrapped.master_key_version <= len(key.versions):
            raise WrappingVersionUnusable
        prefix = f"vault:v{wrapped.master_key_version}:"
        if not wrapped.ciphertext.startswith(prefix):
            raise KeyRecordCorrupt
        try:
            sealed = base64.b64decode(wrapped.ciphertext.removeprefix(prefix), validate=True)
            cipher = _cipher(key, wrapped.master_key_version, context)
            return SecretBytes(cipher.decrypt(sealed[:12], sealed[12:], None))
        except (InvalidTag, ValueError) as error:
            raise KeyRecordCorrupt from error

    @property
    def rewrap_batch_size(self) -> int:
        return 100

    def rewrap(
        self, master_key: str, keys: Sequence[tuple[WrappedDataKey, bytes]]
    ) -> Sequence[WrappedDataKey | ServiceError]:
        key = self._key(master_key)
        return [self._rewrapped(master_key, key, wrapped, context) for wrapped, context in keys]

    def _rewrapped(
        self, master_key: str, key: _MasterKey, wrapped: WrappedDataKey, context: bytes
    ) -> WrappedDataKey | ServiceError:
        try:
            data_key = self.unwrap(master_key, wrapped, context)
        except (KeyRecordCorrupt, WrappingVersionUnusable) as error:
            return error
        return _wrapped(key, data_key.reveal(), context)

    def describe(self, master_key: str) -> MasterKeyState:
        key = self._key(master_key)
        return MasterKeyState(
            master_key, len(key.versions), key.min_decryption_version, key.create_time, None
        )

    def probe(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with

    def _key(self, master_key: str) -> _MasterKey:
        with self._lock:
            self.calls += 1
        self.probe()
        key = self._keys.get(master_key)
        if key is None or not key.derived:
            raise MasterKeyMisconfigured
        return key


def _wrapped(key: _MasterKey, data_key: bytes, context: bytes) -> WrappedDataKey:
    version, nonce = len(key.versions), os.urandom(12)
    sealed = nonce + _cipher(key, version, context).encrypt(nonce, data_key, None)
    text = f"vault:v{version}:{base64.b64encode(sealed).decode()}"
    return WrappedDataKey(text, version)


def _cipher(key: _MasterKey, version: int, context: bytes) -> AESGCM:
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=context)
    return AESGCM(derivation.derive(key.versions[version - 1]))
