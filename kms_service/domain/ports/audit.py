"""The audit log, its chain, and what makes checkpoints of it."""

from __future__ import annotations

from typing import Protocol

from kms_service.domain.audit import AuditRecord, ChainHead


class AuditLog(Protocol):
    def append(self, record: AuditRecord) -> None:
        """Durable when it returns.

        Raises:
            AuditUnavailable: it is not, and nothing may be issued on its strength.
        """


class AuditChain(Protocol):
    @property
    def head(self) -> ChainHead | None:
        """Of this process's chain; None without a record."""


class NoteSigner(Protocol):
    def sign(self, text: str) -> bytes:
        """A signed note of `text`, checked.

        Raises:
            SigningKeyMisconfigured: the key is missing, or no Ed25519 key.
            VaultUnavailable, VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """


class CheckpointStore(Protocol):
    """A place that can be written once, apart from the audit log's."""

    def put(self, name: str, note: bytes) -> None:
        """Durable when it returns.

        Raises:
            StorageUnavailable: it is not, or something of that name is there already.
        """
