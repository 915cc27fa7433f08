"""Stored objects that no version uses are deleted after a grace time.

They come from publishers who upload with credentials of their own: into a version that has expired
meanwhile, or never finished. What goes through the service is deleted with its version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.errors import StorageUnavailable
from kms_service.domain.ports import ArtifactStore, AuditLog, Clock, Database

BATCH = 500
MOST_ORPHANS = 20
"""More than these, and more than all that is in use, are not orphans: the store is another
installation's, or the database was put back from an old backup."""


class SweepOrphans:
    """Called by a timer; by nobody from outside, so there is no policy to ask."""

    def __init__(
        self,
        *,
        database: Database,
        store: ArtifactStore,
        audit: AuditLog,
        clock: Clock,
        grace: timedelta,
    ) -> None:
        self._database = database
        self._store = store
        self._audit = audit
        self._clock = clock
        self._grace = grace

    def __call__(self) -> int:
        """Delete what is due; how many objects.

        Raises:
            StorageUnavailable: the store cannot be used; or it holds so much that the database
                does not know that they hardly belong together, and nothing was deleted.
            StateUnavailable, AuditUnavailable: what is left is done the next time.
        """
        orphans: list[str] = []
        used = 0
        for ids in _batches(self._store.stored_before(self._clock.now() - self._grace)):
            in_use = self._in_use(ids)
            used += len(in_use)
            orphans += [each for each in ids if each not in in_use]
        if len(orphans) > max(MOST_ORPHANS, used):
            raise StorageUnavailable(
                f"the store holds {len(orphans)} objects that no version uses, and {used} that one "
                "does: is it this database's? Nothing was deleted"
            )
        return sum(self._delete(each) for each in dict.fromkeys(orphans))

    def _delete(self, artifact_id: str) -> bool:
        # Once more, alone: restoring or creating versions may have gone on meanwhile. An id that no
        # version has now will never have one: ids are random, and allotted before any upload.
        if self._in_use([artifact_id]):
            return False
        self._audit.append(
            AuditRecord(
                time=self._clock.now(),
                event="SweepOrphan",
                outcome=Outcome.OK,
                resource="",
                details={"artifact_id": artifact_id},
            )
        )
        self._store.delete(artifact_id)
        return True

    def _in_use(self, artifact_ids: Sequence[str]) -> frozenset[str]:
        with self._database.read() as tx:
            return tx.versions.using_artifacts(artifact_ids)


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
