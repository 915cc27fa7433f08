"""Versions that were never finalized end: DESTROYED, their uploads deleted (DESIGN §9)."""

from __future__ import annotations

from datetime import timedelta

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import VersionState
from kms_service.domain.names import VersionName
from kms_service.domain.ports import ArtifactStore, AuditLog, Clock, Database

BATCH = 100


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

    def __call__(self) -> int:
        """Expire what is due, at most 100 versions; how many. Call again until it is fewer.

        Raises:
            StateUnavailable, StateConflict, StorageUnavailable, AuditUnavailable: what is left
                is done the next time.
        """
        created_before = self._clock.now() - self._pending_ttl
        with self._database.read() as tx:
            due = [version.name for version in tx.versions.pending_before(created_before, BATCH)]
        return sum(self._expire(name) for name in due)

    def _expire(self, name: VersionName) -> bool:
        with self._database.write() as tx:
            version = tx.versions.get(name)
            if version is None or version.state is not VersionState.PENDING:
                return False  # finalized in the last moment
            # The row first: from here on no FinalizeVersion can commit. Then the record and the
            # upload, still within the transaction: killed in between, the version stays PENDING
            # and all of this is done again, so that no upload is ever orphaned.
            tx.versions.update(version.expire())
            self._audit.append(
                AuditRecord(
                    time=self._clock.now(),
                    event="ExpireVersion",
                    outcome=Outcome.OK,
                    resource=str(name),
                    details={"version_uid": version.uid, "artifact_id": version.artifact_id},
                )
            )
            self._store.delete(version.artifact_id)
        return True
