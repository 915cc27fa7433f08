"""The database as a whole: its transactions, and what is asked of all of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Protocol, TypeVar

from kms_service.domain.ports.catalogue import AliasTable, ModelTable, ProjectTable, VersionTable
from kms_service.domain.ports.leases import EndedLeaseTable, LeaseTable
from kms_service.domain.ports.records import AuditHeadTable, DecisionTable
from kms_service.domain.ports.standing import BackupTable, BlockTable, FreezeTable, TrimTable

T = TypeVar("T")

Wake = Callable[[], object]
"""Wakes one who waits; once, from any thread."""


class Transaction(Protocol):
    """One serializable transaction. Nothing is seen by others before it commits."""

    @property
    def projects(self) -> ProjectTable: ...
    @property
    def models(self) -> ModelTable: ...
    @property
    def versions(self) -> VersionTable: ...
    @property
    def aliases(self) -> AliasTable: ...
    @property
    def leases(self) -> LeaseTable: ...
    @property
    def ended_leases(self) -> EndedLeaseTable: ...
    @property
    def decisions(self) -> DecisionTable: ...
    @property
    def audit_heads(self) -> AuditHeadTable: ...
    @property
    def blocks(self) -> BlockTable: ...
    @property
    def freezes(self) -> FreezeTable: ...
    @property
    def backups(self) -> BackupTable: ...
    @property
    def trims(self) -> TrimTable: ...

    def once(self, key: object, look: Callable[[], T]) -> T:
        """What `look` gives, which reads rows and nothing else. It may have been looked up under
        this key before, in this transaction and since the last write to those rows."""


class Database(Protocol):
    def read(self) -> AbstractContextManager[Transaction]:
        """A consistent snapshot; writing in it is a programming error.

        Raises:
            StateUnavailable, StateCorrupt.
        """

    def write(self) -> AbstractContextManager[Transaction]:
        """Commits durably at the end of the block; rolls back on any exception.

        Raises:
            StateUnavailable, StateCorrupt.
            StateConflict: lost against another transaction; nothing was changed.
        """

    def transact(
        self, work: Callable[[Transaction], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        """`work` in a `write` transaction; the whole of it again, some times, while it loses
        against others. So what it does besides must bear repetition.

        Args:
            then: told what `work` gave once it is committed, by whoever committed it, so that it
                neither waits nor raises. This call returns when it is woken: for what the caller
                waits for next, one waking is enough.

        Raises: as `write`, and what `work` raises; then nothing was committed, nor `then` told.
        """

    def look(self, work: Callable[[Transaction], T]) -> T:
        """`work`, which writes nothing, in a consistent snapshot begun after this call. Those who
        look at the same time may share it, so `work` is short; it may run in another thread.

        Raises: as `read`, and what `work` raises.
        """

    def served_time(self) -> timedelta:
        """See `destruction.Moment.served`.

        Raises:
            StateUnavailable, StateCorrupt.
        """

    def scrub(self, *, again: bool = False) -> bool:
        """Leave no bytes of the wrapped keys of destroyed versions in the database's own files,
        if there may be any (or `again`: in any case); whether there was something to do. What the
        database has written elsewhere (backups, archived logs, freed blocks of the disk) is out of
        reach.

        Raises:
            StateUnavailable, StateCorrupt: not done; call again.
        """

    def probe(self) -> None:
        """Returns if the database answers and its schema is current.

        Raises:
            StateUnavailable, StateCorrupt.
        """
