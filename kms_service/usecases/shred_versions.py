"""Crypto-shredding: what was scheduled, confirmed and waited for is destroyed.

    tombstone in Vault → artifact → wrapped key out of the row, and a record → files scrubbed

Killed anywhere between, the next run goes on: a tombstone that is there stays, a version that is
still DESTROY_SCHEDULED is due still (it cannot be restored any more), and files are scrubbed
whenever more versions are DESTROYED than at the last time.
"""

from __future__ import annotations

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import Version, VersionState
from kms_service.domain.destruction import Moment, Tombstone
from kms_service.domain.names import VersionName
from kms_service.domain.ports import (
    ArtifactStore,
    AuditLog,
    Clock,
    Database,
    LeaseFilter,
    Tombstones,
    Transaction,
)
from kms_service.usecases.version_records import state_of

BATCH = 100


class ShredVersions:
    """Called by a timer; by nobody from outside, so there is no policy to ask."""

    def __init__(
        self,
        *,
        database: Database,
        tombstones: Tombstones,
        store: ArtifactStore,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._database = database
        self._tombstones = tombstones
        self._store = store
        self._audit = audit
        self._clock = clock

    def __call__(self) -> int:
        """Destroy what is due, at most 100 versions; how many. Then scrub the database's files.

        Raises:
            StateUnavailable, StateConflict, StorageUnavailable, AuditUnavailable, and outages of
                Vault: what is left is done the next time.
        """
        now = Moment(self._clock.now(), self._database.served_time())
        with self._database.read() as tx:
            due = tx.versions.destroy_due(now, BATCH)
        shredded = sum(self._shred(version, now) for version in due)
        self._database.scrub()
        return shredded

    def _shred(self, due: Version, now: Moment) -> bool:
        # First what outlives the database: a key must not be gone here and come back from a
        # backup. It is final already, since what is due cannot be restored.
        self._tombstones.write(Tombstone(str(due.name), due.uid, now.time))
        # Artifact before row: killed in between, all of this is done again. Nobody can want it
        # back: what is due cannot be restored.
        if due.destruction is not None and due.destruction.delete_artifact:
            self._store.delete(due.artifact_id)
        return self._database.transact(lambda tx: self._end(tx, due.name, now))

    def _end(self, tx: Transaction, name: VersionName, now: Moment) -> bool:
        version = tx.versions.get(name)
        if version is None or version.state is not VersionState.DESTROY_SCHEDULED:
            return False  # another replica was faster
        shredded = version.shred(now)
        tx.versions.update(shredded)
        tx.leases.revoke(_leases_of(name), now.time)
        self._record(shredded, now)
        return True

    def _record(self, version: Version, now: Moment) -> None:
        destruction = version.destruction
        assert destruction is not None  # `Version.shred` made it DESTROYED by one
        self._audit.append(
            AuditRecord(
                time=now.time,
                event="ShredVersion",
                outcome=Outcome.OK,
                resource=str(version.name),
                details={
                    **state_of(version),
                    "artifact_id": version.artifact_id,
                    "artifact": "deleted" if destruction.delete_artifact else "kept",
                    "scheduled_by": destruction.scheduled_by,
                    "confirmed_by": destruction.confirmed_by,
                    "due_time": destruction.due.time.isoformat(),
                },
            )
        )


def _leases_of(name: VersionName) -> LeaseFilter:
    return LeaseFilter(name.project, model=name.model, number=name.number)
