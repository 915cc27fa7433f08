"""SQLite: one process, one file.

pysqlite3 bundles a current SQLite: systems' own often have the WAL-reset bug (3.7.0 to 3.51.2),
which can lose a committed transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from pysqlite3 import dbapi2 as sqlite
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError

from kms_service.adapters.database.engine import EngineOptions, translated
from kms_service.adapters.database.group_commit import GroupCommit
from kms_service.adapters.database.seen import Seen, remembering
from kms_service.domain.errors import (
    ConfigurationError,
    ServiceError,
    StateConflict,
    StateCorrupt,
    StateUnavailable,
)
from kms_service.domain.ports import Wake

T = TypeVar("T")

_FIRST_WITHOUT_WAL_RESET_BUG = (3, 51, 3)
_BUSY_TIMEOUT_S = 5.0

# sqlite3_errcode primary codes (https://sqlite.org/rescode.html).
_CORRUPT, _NOT_A_DATABASE = 11, 26


class SqliteTransactions:
    """Implements `engine.Transactions`.

    Writers of this process queue on a lock of ours: SQLite's own waiting is a poll with sleeps.

    Raises:
        ConfigurationError: no file is named, or this SQLite has the WAL-reset bug.
    """

    def __init__(self, url: str, options: EngineOptions) -> None:
        self.engine = _engine(url, options.connections)
        self._writer = threading.Lock()
        self._group = GroupCommit(self._turn, meaning_of)
        self._kept: _Kept | None = None
        """Of the group's turns; whoever holds `_writer` may use it."""
        self._looks = GroupCommit(self.read, meaning_of, reads=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with translated(meaning_of), self.engine.connect() as plain:
            connection = plain.execution_options(**remembering(Seen(_Driver(plain))))
            with connection.begin():
                yield connection

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The writers' turn."""
        if not self._writer.acquire(timeout=_BUSY_TIMEOUT_S):
            raise StateUnavailable
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._writing(), translated(meaning_of), self.engine.connect() as plain:
            connection = plain.execution_options(writes=True, **remembering(Seen(_Driver(plain))))
            with connection.begin():
                yield connection

    @contextmanager
    def _turn(self) -> Iterator[Connection]:
        """As `write`, on a connection that is kept. To take one from the pool, begin, commit and
        give it back costs SQLAlchemy longer than SQLite takes for the statements of ten leases."""
        with self._writing(), translated(meaning_of):
            kept = self._kept = self._kept or _Kept(self.engine)
            try:
                kept.begin()
                yield kept.connection
                kept.commit()
            except BaseException:
                # Back to the pool, which rolls back; what is broken goes with it.
                self._kept = None
                kept.connection.close()
                raise

    def transact(
        self, work: Callable[[Connection], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        """Once: writers take turns here, so that none loses against another; those who wait at
        the same time share one commit."""
        return self._group.run(work, then)

    def look(self, work: Callable[[Connection], T]) -> T:
        """Those who wait at the same time share one snapshot, begun after they all came."""
        return self._looks.run(work)

    @contextmanager
    def alone(self, what: int) -> Iterator[bool]:
        """One process has this database."""
        del what
        yield True

    def rewrite(self) -> None:
        """As the protocol says: the file, and the write-ahead log emptied. Readers go on.

        `secure_delete` zeroes what is deleted where it is in use. A page that was split before may
        have kept a copy in its free space (of 1,500 keys deleted so, 7 were still found; a test
        tries it), and the log has the pages of before.
        """
        with self._writing():
            try:
                # Neither may run in a transaction: past SQLAlchemy, which begins one.
                with closing(self.engine.raw_connection()) as connection:
                    connection.execute("VACUUM").close()
                    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    if busy:
                        raise StateUnavailable
            except sqlite.DatabaseError as error:
                raise _meaning_of_code(error) from error

    def close(self) -> None:
        with self._writer:
            if self._kept is not None:
                self._kept.connection.close()
                self._kept = None
        self.engine.dispose()

    @contextmanager
    def locking(self) -> Iterator[Connection]:
        with self.write() as connection:
            yield connection

    @contextmanager
    def upgrade(self) -> Iterator[Connection]:
        with self.write() as connection:
            yield connection


class _Kept:
    """A connection whose transactions are begun and committed by the driver itself. Statements by
    SQLAlchemy take part in them; it then believes to have begun them, and is told of the end."""

    def __init__(self, engine: Engine) -> None:
        plain = engine.connect()
        self._driver = _Driver(plain)
        self._seen = Seen(self._driver)
        self.connection = plain.execution_options(begun=True, **remembering(self._seen))

    def begin(self) -> None:
        self._seen.begin()
        self._driver.run("BEGIN IMMEDIATE", ())

    def commit(self) -> None:
        if self.connection.in_transaction():
            self.connection.commit()
        else:
            self._driver.run("COMMIT", ())


class _Driver:
    """Implements `seen.Driver` on a connection's own driver."""

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection

    def run(self, sql: str, values: Sequence[object]) -> Iterable[Sequence[Any]]:
        try:
            rows: Sequence[Sequence[Any]] = self._driver.execute(sql, values).fetchall()
        except sqlite.Error as error:
            raise DBAPIError.instance(sql, None, error, sqlite.Error) from error
        return rows

    @property
    def total_changes(self) -> int:
        return int(self._driver.total_changes)


def _engine(url: str, connections: int) -> Engine:
    """WAL, every commit synced, deleted content overwritten."""
    _refuse_buggy_library(sqlite.sqlite_version_info)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"database.url: not a database URL ({error})") from error
    if not parsed.database:
        raise ConfigurationError("database.url: must be sqlite:///FILE")
    engine = create_engine(
        parsed,
        module=sqlite,
        pool_size=connections + 1,  # one is kept
        max_overflow=0,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "isolation_level": None},
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _refuse_buggy_library(version: tuple[int, ...]) -> None:
    if version < _FIRST_WITHOUT_WAL_RESET_BUG:
        raise ConfigurationError(
            f"SQLite {'.'.join(map(str, version))} can lose committed transactions (WAL-reset "
            "bug, mended in 3.51.3); install a newer pysqlite3"
        )


def _prepare(connection: Any, _record: object) -> None:
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "secure_delete=ON",
        "foreign_keys=ON",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """pysqlite's own BEGIN comes too late: a writer takes its lock here, or not at all."""
    options = connection.get_execution_options()
    if options.get("begun", False):
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN")


def meaning_of(error: DatabaseError) -> ServiceError:
    """StateUnavailable, StateCorrupt, or StateConflict for an integrity error nobody expected."""
    if isinstance(error, IntegrityError):
        return StateConflict()
    return _meaning_of_code(error.orig)


def _meaning_of_code(error: object) -> ServiceError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return StateCorrupt() if code in (_CORRUPT, _NOT_A_DATABASE) else StateUnavailable()
