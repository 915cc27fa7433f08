"""The real adapters under the use cases, and a stand-in for Vault."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_service.adapters.database.migrate import migrate
from kms_service.adapters.database.sql_database import SqlDatabase
from kms_service.adapters.object_storage import LocalArtifactStore
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import KeyRecordCorrupt, MasterKeyMisconfigured
from kms_service.domain.ports import MasterKeyState
from kms_service.domain.secret import SecretBytes


def migrated_database(folder: Path) -> Path:
    """A database file of the current schema, to be copied."""
    file = folder / "template.db"
    migrate(f"sqlite:///{file}")
    return file


def open_database(folder: Path, template: Path) -> SqlDatabase:
    """A database of its own; migrating each anew would cost more than the tests."""
    file = folder / "state.db"
    shutil.copyfile(template, file)
    return SqlDatabase(f"sqlite:///{file}")


def open_store(folder: Path) -> LocalArtifactStore:
    return LocalArtifactStore(folder / "artifacts")


class FakeVault:
    """Wraps with AES-GCM, the context as associated data: what is bound fails elsewhere, as in
    Vault's derived keys."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}

    @property
    def master_keys(self) -> FakeVault:
        return self

    def make_master_key(self, name: str) -> None:
        self._keys[name] = os.urandom(32)

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        data_key, nonce = os.urandom(32), os.urandom(12)
        sealed = nonce + AESGCM(self._key(master_key)).encrypt(nonce, data_key, context)
        return SecretBytes(data_key), WrappedDataKey(f"vault:v1:{sealed.hex()}", 1)

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        sealed = bytes.fromhex(wrapped.ciphertext.removeprefix("vault:v1:"))
        try:
            opened = AESGCM(self._key(master_key)).decrypt(sealed[:12], sealed[12:], context)
        except InvalidTag as error:
            raise KeyRecordCorrupt from error
        return SecretBytes(opened)

    def describe(self, master_key: str) -> MasterKeyState:
        self._key(master_key)
        return MasterKeyState(master_key, 1, 1, datetime(2030, 1, 1, tzinfo=UTC), None)

    def probe(self) -> None:
        """Always there."""

    def _key(self, name: str) -> bytes:
        if name not in self._keys:
            raise MasterKeyMisconfigured
        return self._keys[name]
