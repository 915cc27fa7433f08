"""The database port: transactions with five tables in them, and the clock's mark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from kms_service.adapters.database import schema
from kms_service.adapters.database.catalogue_tables import (
    SqlAliasTable,
    SqlModelTable,
    SqlProjectTable,
)
from kms_service.adapters.database.engine import Transactions, sqlite_engine
from kms_service.adapters.database.lease_table import SqlLeaseTable
from kms_service.adapters.database.migrate import SchemaState, schema_state_of
from kms_service.adapters.database.times import from_us, to_us
from kms_service.adapters.database.version_table import SqlVersionTable
from kms_service.domain.errors import StateUnavailable


class SqlTransaction:
    """Implements `domain.ports.Transaction` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def projects(self) -> SqlProjectTable:
        return SqlProjectTable(self._connection)

    @cached_property
    def models(self) -> SqlModelTable:
        return SqlModelTable(self._connection)

    @cached_property
    def versions(self) -> SqlVersionTable:
        return SqlVersionTable(self._connection)

    @cached_property
    def aliases(self) -> SqlAliasTable:
        return SqlAliasTable(self._connection)

    @cached_property
    def leases(self) -> SqlLeaseTable:
        return SqlLeaseTable(self._connection)


class SqlDatabase:
    """Implements `domain.ports.Database`. Safe to use from many threads, of one process.

    Args:
        url: `sqlite:///FILE`; migrated (see `migrate`).

    Raises:
        ConfigurationError: another database, or a SQLite library that loses transactions.
    """

    def __init__(self, url: str) -> None:
        self._transactions = Transactions(sqlite_engine(url))

    @contextmanager
    def read(self) -> Iterator[SqlTransaction]:
        with self._transactions.read() as connection:
            yield SqlTransaction(connection)

    @contextmanager
    def write(self) -> Iterator[SqlTransaction]:
        with self._transactions.write() as connection:
            yield SqlTransaction(connection)

    def probe(self) -> None:
        with self._transactions.read() as connection:
            if schema_state_of(connection) is not SchemaState.CURRENT:
                raise StateUnavailable("the database's schema is not this version's")

    def clock_mark(self) -> datetime | None:
        """The highest logical time ever stored; None at first."""
        with self._transactions.read() as connection:
            mark = connection.execute(select(schema.clock.c.mark_us)).scalar_one_or_none()
        return from_us(mark) if mark is not None else None

    def store_clock_mark(self, mark: datetime) -> None:
        """Store it, unless a higher one is there."""
        row = insert(schema.clock).values(id=1, mark_us=to_us(mark))
        raised = row.on_conflict_do_update(
            index_elements=["id"],
            set_={"mark_us": row.excluded.mark_us},
            where=row.excluded.mark_us > schema.clock.c.mark_us,
        )
        with self._transactions.write() as connection:
            connection.execute(raised)

    def close(self) -> None:
        self._transactions.engine.dispose()
