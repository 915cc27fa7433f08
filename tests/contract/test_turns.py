"""Sweeps that one process at a time does; SQLite has one process, PostgreSQL many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kms_service.adapters.database import SqlDatabase
from kms_service.adapters.database.turns import InTurns
from kms_service.domain.errors import StateUnavailable
from kms_service.domain.ports import Transaction
from tests.contract.conftest import Migrated
from tests.contract.rows import version
from tests.support.postgresql import PostgresServer

pytestmark = pytest.mark.xdist_group("postgresql")


@pytest.fixture
def another(migrated: Migrated, filled: SqlDatabase) -> Iterator[SqlDatabase]:
    """Another process's way to the same database."""
    database = SqlDatabase(migrated.url)
    yield database
    database.close()


def inserting(database: InTurns, number: int) -> Callable[[], int]:
    """A sweep of one change."""

    def work(tx: Transaction) -> int:
        tx.versions.insert(version(number))
        return 1

    return lambda: database.transact(work)


def stored(database: SqlDatabase) -> list[int]:
    with database.read() as tx:
        return [each.name.number for each in tx.versions.list(version(1).name.parent, 9, "").items]


def test_what_a_sweep_does_in_its_turn_is_stored(filled: SqlDatabase) -> None:
    turns = InTurns(filled, "sweep")
    assert turns.take(inserting(turns, 1)) == 1
    assert turns.take(inserting(turns, 2)) == 1
    assert stored(filled) == [2, 1]


def test_out_of_its_turn_it_changes_nothing(filled: SqlDatabase) -> None:
    turns = InTurns(filled, "sweep")
    with pytest.raises(StateUnavailable):
        inserting(turns, 1)()
    assert stored(filled) == []


def test_one_at_a_time_of_each_sweep(
    migrated: Migrated, filled: SqlDatabase, another: SqlDatabase
) -> None:
    if migrated.url.startswith("sqlite"):
        return  # one process
    first, second = InTurns(filled, "sweep"), InTurns(another, "sweep")
    other = InTurns(another, "other")

    def sweep() -> int:
        assert second.take(inserting(second, 1)) == 0
        assert other.take(inserting(other, 2)) == 1
        return 7

    assert first.take(sweep) == 7
    assert second.take(inserting(second, 3)) == 1
    assert stored(filled) == [3, 2]


def test_who_lost_the_lock_without_knowing_can_change_nothing(
    request: pytest.FixtureRequest, migrated: Migrated, filled: SqlDatabase, another: SqlDatabase
) -> None:
    """Paused, or cut off, in the midst of its sweep; another takes over; it wakes."""
    if migrated.url.startswith("sqlite"):
        return  # one process
    server: PostgresServer = request.getfixturevalue("postgres")
    paused, successor = InTurns(filled, "sweep"), InTurns(another, "sweep")

    def sweep() -> int:
        server.cut_sessions()  # the database has lost sight of it
        assert successor.take(inserting(successor, 1)) == 1
        return inserting(paused, 2)()

    with pytest.raises(StateUnavailable):
        paused.take(sweep)
    assert stored(another) == [1]
    assert paused.take(inserting(paused, 3)) == 1
