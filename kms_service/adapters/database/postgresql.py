"""PostgreSQL 15 or newer: many workers and replicas on one database.

Writers run SERIALIZABLE, so that what a use case read in its transaction still holds when it
commits; who loses (SQLSTATE class 40) is run again, whole. Readers see one snapshot and never lose.

A COMMIT whose reply gets lost is settled, not guessed: the transaction's id was read before, and
afterwards the server is asked what became of it (F58).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, DBAPIError

from kms_service.adapters.database.engine import EngineOptions, translated
from kms_service.domain.errors import (
    ConfigurationError,
    ServiceError,
    StateConflict,
    StateCorrupt,
    StateUnavailable,
)
from kms_service.domain.ports import Wake

T = TypeVar("T")

IsolationLevel = Literal["SERIALIZABLE", "READ COMMITTED"]

_OLDEST = 150000
_CONNECT_TIMEOUT_S = 3
_POOL_TIMEOUT_S = 5.0
_REPLY_MARGIN_S = 2.0
"""How much longer than a statement may take its reply may: then the server or the way is gone."""
_ATTEMPTS = 8
_FIRST_BACKOFF_S = 0.002
_UPGRADE_LOCK = 0x6D6B6D73  # "mkms"
_UPGRADE_LOCK_TIMEOUT_MS = 5000
_SETTLE_FOR_S = 10.0
_SETTLE_PAUSE_S = 0.05

# SQLSTATE classes and codes (PostgreSQL, appendix A).
_ROLLED_BACK, _INTEGRITY = "40", "23"
_CORRUPT = ("XX001", "XX002")


class _Lost(StateUnavailable):
    """The connection broke and the transaction was not committed."""


class PostgresqlTransactions:
    """Implements `engine.Transactions`.

    Raises:
        ConfigurationError: the URL or its files cannot be used, or would be insecure.
    """

    def __init__(self, url: str, options: EngineOptions) -> None:
        self.engine = _engine(url, options)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with translated(meaning_of), self.engine.connect() as plain:
            connection = plain.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._transaction("SERIALIZABLE") as connection:
            yield connection

    @contextmanager
    def locking(self) -> Iterator[Connection]:
        with self._transaction("READ COMMITTED") as connection:
            yield connection

    @contextmanager
    def _transaction(self, isolation_level: IsolationLevel) -> Iterator[Connection]:
        with translated(meaning_of), self.engine.connect() as plain:
            connection = plain.execution_options(isolation_level=isolation_level)
            transaction = connection.begin()
            try:
                yield connection
                receipt = _receipt(connection)
            except BaseException:
                transaction.close()  # rolls back; on a broken connection there is nothing to
                raise
            try:
                transaction.commit()
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                self._settle(receipt, error)

    def transact(
        self, work: Callable[[Connection], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        result = self._transact(work)
        if then is not None:
            asleep = threading.Lock()
            asleep.acquire()
            then(result, asleep.release)
            asleep.acquire()
        return result

    def _transact(self, work: Callable[[Connection], T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                with self.write() as connection:
                    return work(connection)
            except (StateConflict, _Lost):
                if attempt == _ATTEMPTS:
                    raise
            # Full jitter: two that lost against each other must not meet again.
            time.sleep(random.random() * _FIRST_BACKOFF_S * 2**attempt)  # noqa: S311

    def close(self) -> None:
        self.engine.dispose()

    def look(self, work: Callable[[Connection], T]) -> T:
        with self.read() as connection:
            return work(connection)

    @contextmanager
    def alone(self, what: int) -> Iterator[bool]:
        with translated(meaning_of), self.engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            # Closed at the end, not pooled: whatever happens, the lock ends with its session.
            connection.detach()
            of = {"ours": _UPGRADE_LOCK, "what": what}
            lock = text("SELECT pg_try_advisory_lock(:ours, :what)")
            alone = bool(connection.execute(lock, of).scalar_one())
            try:
                yield alone
            finally:
                # A session ends some time after it was closed; one that is lost holds no lock.
                if alone:
                    with suppress(DatabaseError):
                        connection.execute(text("SELECT pg_advisory_unlock(:ours, :what)"), of)

    def rewrite(self) -> None:
        """As the protocol says: the table of versions (`VACUUM FULL`: PostgreSQL's plain VACUUM
        leaves the bytes in the page). The write-ahead log keeps them until it is recycled."""
        with translated(meaning_of), self.engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            driver: Any = connection.connection.driver_connection
            connection.detach()  # its settings are not for others: closed at the end, not pooled
            driver.reply_timeout_s = None
            connection.exec_driver_sql("SET statement_timeout = 0")
            self._wait_for_readers(connection)
            connection.exec_driver_sql("VACUUM (FULL) versions")

    def _wait_for_readers(self, connection: Connection) -> None:
        """Until nobody's snapshot is older than now: a row that somebody may still read would be
        copied along, deleted or not.

        Raises:
            StateUnavailable: somebody's is.
        """
        now = connection.exec_driver_sql("SELECT pg_current_xact_id()::xid::text").scalar_one()
        older = text(
            "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND age(backend_xmin) >= age(CAST(:now AS xid)) AND datname = current_database()"
        )
        end = time.monotonic() + _POOL_TIMEOUT_S
        while connection.execute(older, {"now": now}).scalar_one():
            if time.monotonic() > end:
                raise StateUnavailable
            time.sleep(_SETTLE_PAUSE_S)

    @contextmanager
    def upgrade(self) -> Iterator[Connection]:
        with translated(meaning_of), self.engine.connect() as plain:
            # Not serializable: it must see what the one before it did while it waited its turn.
            connection = plain.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _UPGRADE_LOCK})
                # Never waits long for a table: whoever asks for it meanwhile queues behind, and
                # the old replica still serves.
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_UPGRADE_LOCK_TIMEOUT_MS}")
                yield connection

    def _settle(self, receipt: _Receipt | None, error: DBAPIError) -> None:
        """Returns if the transaction is committed.

        Raises:
            _Lost: it is not, and never will be.
            StateUnavailable: nobody can tell. A repeated request finds out by its request id.
        """
        if receipt is None:
            return  # it wrote nothing
        end = time.monotonic() + _SETTLE_FOR_S
        while time.monotonic() < end:
            try:
                fate = self._fate(receipt)
            except DatabaseError:
                fate = "in progress"  # of the server's restart, or its successor's start
            match fate:
                case "committed":
                    return
                case "aborted":
                    raise _Lost from error
                case "in progress":  # the server has not noticed yet, or waits for its standby
                    time.sleep(_SETTLE_PAUSE_S)
                case _:
                    break
        raise StateUnavailable from error

    def _fate(self, receipt: _Receipt) -> str | None:
        with self.engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            # A promoted standby counts on from what it had received, a server after a crash from
            # what it had on disk, so that there the number may be another transaction's by now.
            if _history_of(connection) != receipt.history:
                return None
            fate = connection.execute(
                text("SELECT pg_xact_status(CAST(:id AS xid8))"), {"id": receipt.transaction}
            ).scalar_one_or_none()
        return None if fate is None else str(fate)


@dataclass(frozen=True, slots=True)
class _Receipt:
    """By what a transaction can be asked after."""

    transaction: str
    history: tuple[str, ...]
    """As `HISTORY`: a number means the same only within it."""


def _receipt(connection: Connection) -> _Receipt | None:
    """None: it wrote nothing."""
    transaction = connection.exec_driver_sql(
        "SELECT pg_current_xact_id_if_assigned()::text"
    ).scalar_one()
    if transaction is None:
        return None
    return _Receipt(str(transaction), _history_of(connection))


HISTORY = (
    "SELECT system_identifier::text, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),"
    " (SELECT coalesce(stats_reset::text, '') FROM pg_stat_archiver)"
    " FROM pg_control_system()"
)
"""Cluster, timeline and, for the last crash, when statistics began: recovery throws them away
(PostgreSQL's pgstat_reset_after_failure), a clean stop keeps them. Whoever resets them by hand
makes us tell an outage where we need not."""


def _history_of(connection: Connection) -> tuple[str, ...]:
    history: tuple[str, ...] = connection.info["history"]
    return history


# --- connections ---------------------------------------------------------------------------


def _engine(url: str, options: EngineOptions) -> Engine:
    parameters = _parameters(url, options)

    def connect() -> _BoundedConnection:
        secret: dict[str, Any] = _password(options.password_file)
        connection = _BoundedConnection.connect(**parameters, **secret)
        connection.reply_timeout_s = options.statement_timeout_s + _REPLY_MARGIN_S
        return connection

    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=options.connections,
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT_S,
        # A server that was restarted left dead connections here: found before use, not in use.
        pool_pre_ping=True,
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _parameters(url: str, options: EngineOptions) -> dict[str, Any]:
    """Of libpq. What the URL leaves open is decided here; what would be insecure is refused."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise ConfigurationError("database.url: not a PostgreSQL URL (libpq, 34.1.1.2)") from error
    if given.get("password"):
        raise ConfigurationError(
            "database.url: holds a password; put it into a file and name that in "
            "database.password_file"
        )
    timeout_ms = int(options.statement_timeout_s * 1000)
    ours: dict[str, Any] = {
        "application_name": "modelkms-server",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "gssencmode": "disable",
        # Of several hosts the one that takes writes: after a failover that is another.
        "target_session_attrs": "read-write",
        # A host that vanished without a word is noticed.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 2 * timeout_ms,
        "options": (
            f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms}"
            f" -c idle_in_transaction_session_timeout={4 * timeout_ms}"
        ),
    }
    hosts = str(given.get("host") or given.get("hostaddr") or "/").split(",")
    if not all(host.startswith("/") for host in hosts):  # not Unix sockets alone
        ours |= {
            "sslmode": "verify-full",
            "ssl_min_protocol_version": "TLSv1.3",
            "sslrootcert": str(options.ca_file or "system"),
        }
        if given.get("sslmode", "verify-full") != "verify-full":
            raise ConfigurationError(
                "database.url: sslmode must be verify-full, which is also the default"
            )
    return ours | given


def _password(file: Path | None) -> dict[str, str]:
    """Read anew for each connection, so that a rotated one is found."""
    if file is None:
        return {}
    try:
        return {"password": file.read_text().strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise StateUnavailable from error


class _BoundedConnection(psycopg.Connection[Any]):
    """Waits for a reply so long and no longer: the server's own time-out ends a statement, but a
    server that is stopped, or a way that swallows, answers nothing at all."""

    reply_timeout_s: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.reply_timeout_s)
        except psycopg.OperationalError as error:
            if error.sqlstate is None:  # not the server's word: nothing more is read from here
                self.close()
            raise


def _prepare(connection: _BoundedConnection, record: Any) -> None:
    """
    Raises:
        psycopg.OperationalError: older than 15.
    """
    if connection.info.server_version < _OLDEST:
        raise psycopg.OperationalError("PostgreSQL is older than 15")
    connection.autocommit = True
    history = connection.execute(HISTORY).fetchone()
    connection.autocommit = False
    record.info["history"] = history


def meaning_of(error: DatabaseError) -> ServiceError:
    """StateUnavailable, StateCorrupt, or StateConflict for what another transaction was in the
    way of, and for an integrity error nobody expected."""
    state = getattr(error.orig, "sqlstate", None) or ""
    if state[:2] in (_ROLLED_BACK, _INTEGRITY):
        return StateConflict()
    if state in _CORRUPT:
        return StateCorrupt()
    return _Lost() if error.connection_invalidated else StateUnavailable()
