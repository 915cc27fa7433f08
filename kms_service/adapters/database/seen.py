"""What a transaction has looked up already, for the many that share it.

Callers who wait at the same time share a transaction (`group_commit`), and mostly ask for the same
few rows: a fleet that starts asks for one version. Within a transaction a row changes only by what
the transaction itself writes, so a row is looked up once and again after any write but a lease's.
Nothing outlives its transaction: each begins after all who share it have come, and so sees every
block, freeze and revocation that was committed before they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy import Connection

T = TypeVar("T")

_OPTION = "modelkms_seen"
_MOST = 1024
"""Rows. A long transaction (an expiry, a listing) must not keep all that it passes."""


class Driver(Protocol):
    """A connection of SQLite's driver."""

    def run(self, sql: str, values: Sequence[object]) -> Iterable[Sequence[Any]]:
        """The rows that a statement gives.

        Raises:
            sqlalchemy.exc.DatabaseError.
        """

    @property
    def total_changes(self) -> int:
        """Rows written since it was opened, by statements, cascades and triggers."""


class Seen:
    """Of one transaction on this connection; of one after the other, where each begins anew."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.begin()

    def begin(self) -> None:
        self._changes = self.driver.total_changes
        self._rows: dict[object, object] = {}
        self.shared: object = None
        """What else those who share the transaction share."""

    def once(self, key: object, look: Callable[[], T]) -> T:
        changes = self.driver.total_changes
        if changes != self._changes or len(self._rows) >= _MOST:
            self._rows.clear()
            self._changes = changes
        if key not in self._rows:
            self._rows[key] = look()
        return cast("T", self._rows[key])

    def leases_written(self, count: int) -> None:
        """So many of the rows written were new leases: what is kept here is none of those."""
        self._changes += count

    def forget(self) -> None:
        """What was written was taken back, which counts as no change."""
        self._rows.clear()


def remembering(seen: Seen) -> dict[str, object]:
    """Execution options of a connection in whose transaction rows are looked up once."""
    return {_OPTION: seen}


def seen_of(connection: Connection) -> Seen | None:
    """None: each look is a statement."""
    return cast("Seen | None", connection.get_execution_options().get(_OPTION))


def look_once(connection: Connection, key: object, look: Callable[[], T]) -> T:
    seen = seen_of(connection)
    return look() if seen is None else seen.once(key, look)
