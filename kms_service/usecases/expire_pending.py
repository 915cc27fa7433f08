"""Versions that were never finalized end: DESTROYED, their uploads deleted (DESIGN §9)."""

from __future__ import annotations

from datetime import timedelta

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import Version, VersionState
from kms_service.domain.names import VersionName
from kms_service.domain.ports import ArtifactStore, AuditLog, Clock, Database, Transaction
from kms_service.usecases.version_records import state_of

BATCH = 100
LEFT_FOR = timedelta(days=7)
"""How long a service may have been away and still find its leftovers."""
SWEPT = 10_000


class ExpirePending:
    """Called by a timer; by nobody from outside, so there is no policy to ask."""

    def __init__(
        self,
        *,
        database: Database,
        store: ArtifactStore,
        audit: AuditLog,
        clock: Clock,
        pending_ttl: timedelta,
    ) -> None:
        self._database = database
        self._store = store
        self._audit = audit
        self._clock = clock
        self._pending_ttl = pending_ttl
        self._swept = False

    def __call__(self) -> int:
        """Expire what is due, at most 100 versions; how many. Call again until it is fewer.

        Raises:
            StateUnavailable, StateConflict, StorageUnavailable, AuditUnavailable: what is left
                is done the next time.
        """
        if not self._swept:
            self._sweep_uploads()
        created_before = self._clock.now() - self._pending_ttl
        with self._database.read() as tx:
            due = [version.name for version in tx.versions.pending_before(created_before, BATCH)]
        return sum(self._expire(name) for name in due)

    def _expire(self, name: VersionName) -> bool:
        expired = self._database.transact(lambda tx: self._end(tx, name))
        if expired is None:
            return False  # finalized in the last moment
        # Only now: a transaction that loses against FinalizeVersion must not have deleted what
        # that one published. Killed in between, the upload goes at the next start.
        self._store.delete(expired.artifact_id)
        return True

    def _end(self, tx: Transaction, name: VersionName) -> Version | None:
        version = tx.versions.get(name)
        if version is None or version.state is not VersionState.PENDING:
            return None
        expired = version.expire()
        tx.versions.update(expired)
        self._audit.append(
            AuditRecord(
                time=self._clock.now(),
                event="ExpireVersion",
                outcome=Outcome.OK,
                resource=str(name),
                details={**state_of(expired), "artifact_id": version.artifact_id},
            )
        )
        return expired

    def _sweep_uploads(self) -> None:
        """What was left by one who was killed, or whose store was away, after the commit."""
        since = self._clock.now() - self._pending_ttl - LEFT_FOR
        with self._database.read() as tx:
            ended = tx.versions.never_finalized(since, SWEPT)
        for version in ended:
            self._store.delete(version.artifact_id)
        self._swept = True
