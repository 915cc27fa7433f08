"""Sweeps, each of which one process at a time does, of all that share a database.

Whoever takes a turn holds a lock of its session and a number, one higher than that of the turn
before. A process that is paused, or cut off, may lose the lock and not know it; so each transaction
of its sweep reads whether its number is still the newest: what it began when another had taken over
is not committed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection, insert, select, update

from kms_service.adapters.database import schema
from kms_service.adapters.database.engine import Transactions
from kms_service.adapters.database.sql_database import SqlDatabase, SqlTransaction
from kms_service.domain.errors import StateUnavailable
from kms_service.domain.ports import Wake

T = TypeVar("T")

_SWEEPS = schema.sweeps


class InTurns:
    """Implements `domain.ports.Database` for one sweep, while it has its turn. For one thread.

    Args:
        sweep: its name, at most 63 characters; the same in all processes.
    """

    def __init__(self, database: SqlDatabase, sweep: str) -> None:
        self._database = database
        self._transactions: Transactions = database.transactions
        self._sweep = sweep
        self._number: int | None = None

    def take(self, sweep: Callable[[], int]) -> int:
        """What `sweep` gives; 0 without calling it while another process is at it.

        Raises:
            StateUnavailable, StateCorrupt, StateConflict, and what `sweep` raises.
        """
        with self._transactions.alone(zlib.crc32(self._sweep.encode()) & 0x7FFFFFFF) as alone:
            if not alone:
                return 0
            self._number = self._transactions.transact(self._next)
            try:
                return sweep()
            finally:
                self._number = None

    def _next(self, connection: Connection) -> int:
        number = connection.execute(
            update(_SWEEPS)
            .where(_SWEEPS.c.sweep == self._sweep)
            .values(turn=_SWEEPS.c.turn + 1)
            .returning(_SWEEPS.c.turn)
        ).scalar_one_or_none()
        if number is None:
            connection.execute(insert(_SWEEPS).values(sweep=self._sweep, turn=1))
        return int(number or 1)

    def _fence(self, transaction: SqlTransaction) -> None:
        """
        Raises:
            StateUnavailable: this is not the sweep's turn any more.
        """
        newest = transaction.connection.execute(
            select(_SWEEPS.c.turn).where(_SWEEPS.c.sweep == self._sweep)
        ).scalar_one_or_none()
        if newest is None or newest != self._number:
            raise StateUnavailable("another process has taken this sweep over")

    # --- the database, fenced -------------------------------------------------------------------

    def read(self) -> AbstractContextManager[SqlTransaction]:
        return self._database.read()

    @contextmanager
    def write(self) -> Iterator[SqlTransaction]:
        with self._database.write() as transaction:
            self._fence(transaction)
            yield transaction

    def transact(
        self, work: Callable[[SqlTransaction], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        def fenced(transaction: SqlTransaction) -> T:
            self._fence(transaction)
            return work(transaction)

        return self._database.transact(fenced, then)

    def look(self, work: Callable[[SqlTransaction], T]) -> T:
        return self._database.look(work)

    def served_time(self) -> timedelta:
        return self._database.served_time()

    def scrub(self, *, again: bool = False) -> bool:
        return self._database.scrub(again=again)

    def probe(self) -> None:
        self._database.probe()
