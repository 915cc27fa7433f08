"""Many writers, one commit: what a synced commit costs is shared by those who wait for it.

A writer that finds nobody at work leads: it takes all that have gathered into one transaction, each
behind a savepoint of its own, one after the other, and commits once. So each still sees what those
before it did and nothing of those that failed, as if they had taken turns; and none returns before
the commit is durable. Readers share a snapshot in the same way.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, IntegrityError

from kms_service.adapters.database.seen import seen_of
from kms_service.domain.ports import Wake

T = TypeVar("T")

_AT_ONCE = 64
"""Of one commit: bounds how long the first of them waits."""

_NAME = "turn"
_SAVEPOINT, _RELEASE = f"SAVEPOINT {_NAME}", f"RELEASE {_NAME}"

_GATHER_S = 0.0005
"""How long a leader waits for others, if the group before was more than one: those who shared a
commit come back together, and the first of them must not leave without the rest."""

Write = Callable[[], AbstractContextManager[Connection]]


class _Entry(Generic[T]):
    """One writer's work, and what became of it."""

    __slots__ = ("_asleep", "_context", "_then", "_work", "error", "leads", "result")

    def __init__(
        self, work: Callable[[Connection], T], then: Callable[[T, Wake], object] | None
    ) -> None:
        self._work = work
        self._then = then
        # Another thread may run it; what the caller's thread knows (its trace) goes along.
        self._context = contextvars.copy_context()
        self._asleep = threading.Lock()  # held until woken: cheaper than an Event to wait on
        self._asleep.acquire()
        self.leads = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def sleep(self) -> None:
        self._asleep.acquire()

    def wake(self) -> None:
        self._asleep.release()

    def run(self, connection: Connection) -> None:
        self.result = self._context.run(self._work, connection)

    def over(self) -> None:
        """It is committed, or failed: the writer is woken, by `then` if there is one."""
        if self.error is None and self._then is not None:
            try:
                self._then(self.result, self.wake)  # type: ignore[arg-type]  # what work gave
            except BaseException as error:  # a bug; the others of the group must not suffer
                self.error = error
            else:
                return
        self.wake()


class GroupCommit:
    """Runs works on a database, one transaction at a time.

    Args:
        write: a transaction, committed durably at the end of the block.
        meaning_of: what a database error means.
        reads: works write nothing, so that they need no savepoints.
    """

    def __init__(
        self,
        write: Write,
        meaning_of: Callable[[DatabaseError], Exception],
        *,
        reads: bool = False,
    ) -> None:
        self._write = write
        self._meaning_of = meaning_of
        self._one = self._look if reads else self._apart
        self._lock = threading.Lock()
        self._queue: list[_Entry[Any]] = []
        self._led = False
        self._together = 1

    def run(
        self, work: Callable[[Connection], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        """What `work` gives, once it is committed; see `domain.ports.Database.transact`.

        Raises: what `work` raises, and what `write` does.
        """
        entry = _Entry(work, then)
        with self._lock:
            self._queue.append(entry)
            entry.leads = not self._led
            self._led = True
        if not entry.leads:
            entry.sleep()  # until it is to lead, or it is over
        if entry.leads:
            self._lead()
            entry.sleep()
        if entry.error is not None:
            raise entry.error
        return entry.result  # type: ignore[return-value]  # no error: it is what work gave

    def _lead(self) -> None:
        """One commit for all that have gathered, the leader's own first; then the next leads."""
        if self._together > 1:
            time.sleep(_GATHER_S)
        with self._lock:
            group, self._queue = self._queue[:_AT_ONCE], self._queue[_AT_ONCE:]
            self._together = len(group)
        try:
            self._commit(group)
        except BaseException as error:
            # Nothing of it was committed, whoever it was that failed.
            for entry in group:
                entry.error = entry.error or error
        with self._lock:
            following = self._queue[0] if self._queue else None
            self._led = following is not None
        for entry in group:
            entry.over()
        if following is not None:
            following.leads = True
            following.wake()

    def _commit(self, group: list[_Entry[Any]]) -> None:
        with self._write() as connection:
            if len(group) == 1:
                group[0].run(connection)
                return
            for entry in group:
                self._one(entry, connection)

    def _look(self, entry: _Entry[Any], connection: Connection) -> None:
        try:
            entry.run(connection)
        except DatabaseError:
            raise
        except BaseException as error:
            entry.error = error

    def _apart(self, entry: _Entry[Any], connection: Connection) -> None:
        """
        Raises:
            DatabaseError: the transaction as a whole may be gone (a full disk ends it).
        """
        _say(connection, _SAVEPOINT)
        try:
            entry.run(connection)
        except IntegrityError as error:
            _undo(connection)
            entry.error = self._meaning_of(error)
            entry.error.__cause__ = error
        except DatabaseError:
            raise
        except BaseException as error:
            _undo(connection)
            entry.error = error
        else:
            _say(connection, _RELEASE)


def _undo(connection: Connection) -> None:
    _say(connection, f"ROLLBACK TO {_NAME}")
    if (seen := seen_of(connection)) is not None:
        seen.forget()
    _say(connection, _RELEASE)


def _say(connection: Connection, sql: str) -> None:
    """To the driver itself: SQLAlchemy's savepoints take as long as a lease's statements."""
    if (seen := seen_of(connection)) is None:
        connection.exec_driver_sql(sql)
    else:
        seen.driver.run(sql, ())
