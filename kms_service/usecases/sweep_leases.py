"""Leases that ended long ago leave the database; the audit log keeps what they were. A table that
nobody empties grows with every start of every process.

Of each principal and version the last lease stays: it is what `@one_time_lease` is judged by, and
what tells, ever after, that this principal has had that key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from kms_service.domain.names import LeaseName
from kms_service.domain.ports import Clock, Database, Transaction

BATCH = 500
"""Leases that go in one transaction: others are issued between two."""
MOST_AT_ONCE = 50_000


class SweepLeases:
    """Called by a timer; by nobody from outside, so there is no policy to ask. Every replica does
    it: what another has deleted meanwhile is not there any more, and that is all."""

    def __init__(self, *, database: Database, clock: Clock, kept: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._kept = kept

    def __call__(self) -> int:
        """Delete what ended longer ago than it is kept, at most 50,000; how many.

        Raises:
            StateUnavailable, StateConflict: what is left is done the next time.
        """
        expired_before = self._clock.now() - self._kept
        deleted = 0
        while deleted < MOST_AT_ONCE:
            with self._database.read() as tx:
                due = tx.ended_leases.list(expired_before, BATCH)
            if due:
                # What is due stays due: a lease that has expired is never renewed.
                deleted += self._database.transact(partial(_delete, due))
            if len(due) < BATCH:
                break
        return deleted


def _delete(due: Sequence[LeaseName], tx: Transaction) -> int:
    return tx.ended_leases.delete(due)
