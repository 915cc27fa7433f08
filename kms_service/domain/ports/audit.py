"""The audit log, its chain, and what makes checkpoints of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kms_service.domain.audit import AuditRecord, ChainHead


class AuditLog(Protocol):
    def append(self, record: AuditRecord) -> None:
        """Durable when it returns.

        Raises:
            AuditUnavailable: it is not, and nothing may be issued on its strength.
        """

    def append_soon(self, record: AuditRecord, done: Callable[[bool], object]) -> None:
        """Hands it over and does not wait. `done` is told once whether it is durable, mostly by
        another thread, so it neither waits nor raises."""


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


class CheckpointPlace(CheckpointStore, Protocol):
    """The same place, for who reads there, or tries it."""

    def names(self, after: str, before: str) -> Sequence[str]:
        """Of the checkpoints between two names, in order; a name begins with its time.

        Raises:
            StorageUnavailable.
        """

    def get(self, name: str) -> bytes:
        """
        Raises:
            StorageUnavailable: it cannot be read, or there is none of that name.
        """

    def probe(self) -> None:
        """Returns if it can be written, and nothing be written twice. Leaves one object, once,
        that is no checkpoint.

        Raises:
            StorageUnavailable.
            ConfigurationError: what is there could be replaced.
        """
