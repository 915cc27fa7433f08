"""Writers that wait at the same time share a commit, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pysqlite3 import dbapi2 as sqlite
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from kms_service.adapters.database.engine import EngineOptions
from kms_service.adapters.database.sqlite import SqliteTransactions
from kms_service.domain.errors import StateConflict, StateUnavailable


class Rig:
    """A table of numbers; `hold()` keeps the writer busy, so that others gather."""

    def __init__(self, file: Path) -> None:
        self.transactions = SqliteTransactions(f"sqlite:///{file}", EngineOptions())
        with self.transactions.write() as connection:
            connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
        self.commits = 0
        real = self.transactions._group._write

        @contextmanager
        def counted() -> Iterator[Connection]:
            with real() as connection:
                yield connection
            self.commits += 1

        self.transactions._group._write = counted

    def insert(self, number: int) -> int:
        return self.transactions.transact(lambda connection: _insert(connection, number))

    def numbers(self) -> set[int]:
        with self.transactions.read() as connection:
            return set(connection.execute(text("SELECT number FROM numbers")).scalars())

    def gathered(
        self,
        works: Sequence[Callable[[], object]],
        pool: ThreadPoolExecutor,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[BaseException | None]:
        """Run them so that they share one commit; the error of each."""
        release = threading.Event()
        entered = threading.Event()

        def hold(_connection: Connection) -> None:
            entered.set()
            release.wait(30)

        first = pool.submit(self.transactions.transact, hold)
        assert entered.wait(30)
        running = []
        for count, work in enumerate(works, start=1):
            running.append(pool.submit(work))
            self._until(count)
        before = self.commits
        meanwhile()
        release.set()
        first.result(30)
        errors = [each.exception(30) for each in running]
        assert self.commits <= before + 2
        return errors

    def _until(self, waiting: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.transactions._group._queue) < waiting:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def _insert(connection: Connection, number: int) -> int:
    connection.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})
    return number


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "numbers.db")
    yield made
    made.transactions.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as executor:
        yield executor


def test_those_who_wait_share_one_commit(rig: Rig, pool: ThreadPoolExecutor) -> None:
    errors = rig.gathered([lambda n=n: rig.insert(n) for n in range(30)], pool)  # type: ignore[misc]
    assert errors == [None] * 30
    assert rig.numbers() == set(range(30))
    assert rig.commits == 2


def test_each_gets_its_own_result(rig: Rig, pool: ThreadPoolExecutor) -> None:
    assert list(pool.map(rig.insert, range(200))) == list(range(200))
    assert rig.numbers() == set(range(200))
    assert rig.commits <= 200


def test_one_that_fails_leaves_the_others(rig: Rig, pool: ThreadPoolExecutor) -> None:
    def fail_after_writing() -> None:
        def work(connection: Connection) -> None:
            _insert(connection, 100)
            raise KeyError("mine")

        rig.transactions.transact(work)

    works = [
        lambda: rig.insert(1),
        fail_after_writing,
        lambda: rig.insert(1),
        lambda: rig.insert(2),
    ]
    none, mine, twice, other = rig.gathered(works, pool)
    assert none is None
    assert isinstance(mine, KeyError)
    assert isinstance(twice, StateConflict)
    assert other is None
    assert rig.numbers() == {1, 2}


def test_a_commit_that_fails_fails_them_all(rig: Rig, pool: ThreadPoolExecutor) -> None:
    group = rig.transactions._group
    real = group._write

    @contextmanager
    def broken() -> Iterator[Connection]:
        with real() as connection:
            yield connection
            raise StateUnavailable

    works = [lambda: rig.insert(1), lambda: rig.insert(2)]
    errors = rig.gathered(works, pool, meanwhile=lambda: setattr(group, "_write", broken))
    assert [type(error) for error in errors] == [StateUnavailable] * 2
    group._write = real
    rig.insert(3)
    assert rig.numbers() == {3}


def test_an_error_that_ends_the_transaction_fails_the_group(
    rig: Rig, pool: ThreadPoolExecutor
) -> None:
    def full_disk() -> None:
        def work(_connection: Connection) -> None:
            raise OperationalError("INSERT", {}, sqlite.OperationalError("disk full"))

        rig.transactions.transact(work)

    works = [lambda: rig.insert(1), full_disk, lambda: rig.insert(2)]
    errors = rig.gathered(works, pool)
    assert [type(error) for error in errors] == [StateUnavailable] * 3
    assert rig.numbers() == set()
    rig.insert(1)


def test_a_work_sees_what_those_before_it_did(rig: Rig, pool: ThreadPoolExecutor) -> None:
    def add_one() -> int:
        def work(connection: Connection) -> int:
            highest = connection.execute(text("SELECT max(number) FROM numbers")).scalar_one()
            return _insert(connection, (highest or 0) + 1)

        return rig.transactions.transact(work)

    assert sorted(pool.map(lambda _: add_one(), range(100))) == list(range(1, 101))


def test_what_follows_is_told_after_the_commit_and_wakes_the_writer(rig: Rig) -> None:
    seen: list[tuple[int, set[int]]] = []
    wakes: list[Callable[[], object]] = []

    def then(number: int, wake: Callable[[], object]) -> None:
        seen.append((number, rig.numbers()))
        wakes.append(wake)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            rig.transactions.transact, lambda connection: _insert(connection, 1), then
        )
        _until(lambda: bool(wakes))
        assert not running.done()
        wakes[0]()
        assert running.result(30) == 1
    assert seen == [(1, {1})]


def test_of_a_group_only_what_was_committed_is_followed_and_a_bug_there_is_its_own(
    rig: Rig,
) -> None:
    told: list[int] = []

    def then(number: int, wake: Callable[[], object]) -> None:
        told.append(number)
        if number == 3:
            raise RuntimeError
        wake()

    def insert(number: int) -> Callable[[], object]:
        return lambda: rig.transactions.transact(
            lambda connection: _insert(connection, number), then
        )

    rig.insert(2)
    with ThreadPoolExecutor(8) as pool:
        errors = rig.gathered([insert(number) for number in (1, 2, 3, 4)], pool)
    assert [type(error) for error in errors] == [
        type(None),
        StateConflict,
        RuntimeError,
        type(None),
    ]
    assert sorted(told) == [1, 3, 4]
    assert rig.numbers() == {1, 2, 3, 4}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_turns_that_fail_leave_nothing_on_the_kept_connection(rig: Rig) -> None:
    """By SQLAlchemy, by the driver, and in the commit itself."""

    def fail(connection: Connection) -> None:
        _insert(connection, 1)
        raise ZeroDivisionError

    def say(sql: str) -> Callable[[Connection], object]:
        return lambda connection: _driver(connection).execute(sql)

    rig.insert(10)
    with pytest.raises(ZeroDivisionError):
        rig.transactions.transact(fail)
    rig.transactions.transact(say("INSERT INTO numbers VALUES (11)"))
    rig.transactions.transact(say("CREATE TABLE of (number REFERENCES numbers DEFERRABLE"
                                  " INITIALLY DEFERRED)"))  # fmt: skip
    with pytest.raises(StateConflict):  # found out at the commit
        rig.transactions.transact(say("INSERT INTO of VALUES (99)"))
    rig.insert(12)
    assert rig.numbers() == {10, 11, 12}


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
