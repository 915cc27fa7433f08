"""Master keys and tombstones, as Vault keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.destruction import Tombstone
from kms_service.domain.secret import SecretBytes


@dataclass(frozen=True, slots=True)
class MasterKeyState:
    """A transit key as Vault tells it."""

    name: str
    latest_version: int
    min_decryption_version: int
    latest_version_create_time: datetime
    auto_rotate_period: timedelta | None


class MasterKeys(Protocol):
    """Master keys in Vault: wraps and unwraps data keys; never shows a master key."""

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        """A fresh 32-byte data key from Vault's random source, and its wrapped form.

        Raises:
            MasterKeyMisconfigured: the transit key is missing, or not derived.
            VaultUnavailable, VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        """The 32-byte data key.

        Raises:
            KeyRecordCorrupt: wrapped under another context, or damaged.
            WrappingVersionUnusable: its master-key version is below min_decryption_version,
                or newer than Vault knows.
            and as `generate_data_key`.
        """

    def describe(self, master_key: str) -> MasterKeyState:
        """State of the transit key, checked to be aes256-gcm96, derived, not exportable.

        Raises: as `generate_data_key`.
        """

    def probe(self) -> None:
        """Returns if Vault answers, unsealed and active; cheap.

        Raises:
            VaultUnavailable, VaultSealed.
        """


class Unwrapping(Protocol):
    """The one thing that leasing wants of master keys."""

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        """As `MasterKeys.unwrap`; the caller's own copy, to be wiped."""

    def in_memory(
        self, master_key: str, wrapped: WrappedDataKey, context: bytes
    ) -> SecretBytes | None:
        """As `unwrap`, if that takes no call to Vault; else None. Never waits."""


class Tombstones(Protocol):
    """What was destroyed, kept outside the database: a backup of that one cannot bring it back."""

    def write(self, tombstone: Tombstone) -> None:
        """Durable when it returns; never changed again. One that is there already stays.

        Raises:
            VaultUnavailable, VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """

    def uids(self) -> frozenset[str]:
        """Of all destroyed versions.

        Raises: as `write`.
        """

    def holds(self, uid: str) -> bool:
        """Whether there is one, as far as was known when they were last read.

        Raises: as `write`, if they were never read.
        """
