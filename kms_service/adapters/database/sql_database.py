"""The database port: transactions with the tables in them, and the clock's mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast

from sqlalchemy import Connection, case, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from kms_service.adapters.database import schema
from kms_service.adapters.database.audit_head_table import SqlAuditHeadTable
from kms_service.adapters.database.backup_table import SqlBackupTable
from kms_service.adapters.database.catalogue_tables import (
    SqlAliasTable,
    SqlModelTable,
    SqlProjectTable,
)
from kms_service.adapters.database.decision_table import SqlDecisionTable
from kms_service.adapters.database.ended_lease_table import SqlEndedLeaseTable
from kms_service.adapters.database.engine import POSTGRESQL, EngineOptions, transactions_of
from kms_service.adapters.database.key_counts import fold, recount
from kms_service.adapters.database.lease_table import SqlLeaseTable
from kms_service.adapters.database.migrate import SchemaState, schema_state_of
from kms_service.adapters.database.rewraps import SqlRewraps
from kms_service.adapters.database.seen import look_once, seen_of
from kms_service.adapters.database.standing_tables import SqlBlockTable, SqlFreezeTable
from kms_service.adapters.database.times import duration_us, from_us, to_us
from kms_service.adapters.database.trim_table import SqlTrimTable
from kms_service.adapters.database.version_table import SqlVersionTable
from kms_service.domain.catalogue import VersionState
from kms_service.domain.errors import StateUnavailable
from kms_service.domain.ports import Wake

T = TypeVar("T")

_LONGEST_STEP_SERVED = timedelta(minutes=10)
"""Marks are stored every ten seconds. A longer step means that nobody was running, or that a clock
was set: it counts as this much of the time that destructions wait for."""


class SqlTransaction:
    """Implements `domain.ports.Transaction` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.projects = SqlProjectTable(connection)
        self.models = SqlModelTable(connection)
        self.versions = SqlVersionTable(connection)
        self.aliases = SqlAliasTable(connection)
        self.leases = SqlLeaseTable(connection)
        self.ended_leases = SqlEndedLeaseTable(connection)
        self.decisions = SqlDecisionTable(connection)
        self.audit_heads = SqlAuditHeadTable(connection)
        self.blocks = SqlBlockTable(connection)
        self.freezes = SqlFreezeTable(connection)
        self.backups = SqlBackupTable(connection)
        self.trims = SqlTrimTable(connection)

    def once(self, key: object, look: Callable[[], T]) -> T:
        return look_once(self.connection, key, look)


def _transaction(connection: Connection) -> SqlTransaction:
    """One for all who share the transaction."""
    seen = seen_of(connection)
    if seen is None:
        return SqlTransaction(connection)
    if seen.shared is None:
        seen.shared = SqlTransaction(connection)
    return cast("SqlTransaction", seen.shared)


class SqlDatabase:
    """Implements `domain.ports.Database`, and `adapters.clock.MarkStore`. Safe to use from many
    threads; on PostgreSQL also from many processes.

    Args:
        url: `sqlite:///FILE` or `postgresql://…`; migrated (see `migrate`).

    Raises:
        ConfigurationError: another database, or one not to be trusted with keys.
    """

    def __init__(self, url: str, options: EngineOptions | None = None) -> None:
        self.transactions = transactions_of(url, options or EngineOptions())
        self.rewraps = SqlRewraps(self.transactions)
        self._shared = url.startswith(POSTGRESQL)

    @contextmanager
    def read(self) -> Iterator[SqlTransaction]:
        with self.transactions.read() as connection:
            yield SqlTransaction(connection)

    @contextmanager
    def write(self) -> Iterator[SqlTransaction]:
        with self.transactions.write() as connection:
            yield SqlTransaction(connection)

    def transact(
        self, work: Callable[[SqlTransaction], T], then: Callable[[T, Wake], object] | None = None
    ) -> T:
        return self.transactions.transact(lambda connection: work(_transaction(connection)), then)

    def look(self, work: Callable[[SqlTransaction], T]) -> T:
        return self.transactions.look(lambda connection: work(_transaction(connection)))

    def probe(self) -> None:
        """A newer schema is no reason to stop serving: migrations only add within a release
        (docs/guides/postgresql.md), so that the old replica serves until the new one does."""
        with self.transactions.read() as connection:
            state = schema_state_of(connection)
        if state not in (SchemaState.CURRENT, SchemaState.NEWER):
            raise StateUnavailable("the database's schema is not this version's")

    def wall(self) -> datetime:
        """The clock that all who share this database go by: PostgreSQL's, or this machine's."""
        if not self._shared:
            return datetime.now(UTC)
        with self.transactions.read() as connection:
            time: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return time.astimezone(UTC)

    def clock_mark(self) -> datetime | None:
        """The highest logical time ever stored; None at first."""
        with self.transactions.read() as connection:
            mark = connection.execute(select(schema.clock.c.mark_us)).scalar_one_or_none()
        return from_us(mark) if mark is not None else None

    def store_clock_mark(self, mark: datetime) -> datetime:
        """Store it, unless a higher one is there; the higher one."""
        table = schema.clock
        row = (postgresql.insert if self._shared else sqlite.insert)(table).values(
            id=1, mark_us=to_us(mark)
        )
        step_us = row.excluded.mark_us - table.c.mark_us
        longest_us = duration_us(_LONGEST_STEP_SERVED)
        raised = row.on_conflict_do_update(
            index_elements=["id"],
            set_={
                "mark_us": row.excluded.mark_us,
                "served_us": table.c.served_us
                + case((step_us > longest_us, longest_us), else_=step_us),
            },
            where=row.excluded.mark_us > table.c.mark_us,
        )

        def store(connection: Connection) -> datetime:
            connection.execute(raised)
            return from_us(connection.execute(select(schema.clock.c.mark_us)).scalar_one())

        return self.transactions.transact(store)

    def served_time(self) -> timedelta:
        with self.transactions.read() as connection:
            served_us = connection.execute(select(schema.clock.c.served_us)).scalar_one_or_none()
        return timedelta(microseconds=served_us or 0)

    def scrub(self, *, again: bool = False) -> bool:
        versions, clock = schema.versions, schema.clock
        with self.transactions.read() as connection:
            destroyed = connection.execute(
                select(func.count())
                .select_from(versions)
                .where(versions.c.state == VersionState.DESTROYED.value)
            ).scalar_one()
            scrubbed = connection.execute(select(clock.c.scrubbed_versions)).scalar_one_or_none()
        if destroyed == (scrubbed or 0) and not again:
            return False
        self.transactions.rewrite()

        # Counted before: what was destroyed meanwhile is scrubbed the next time.
        def remember(connection: Connection) -> None:
            done = connection.execute(update(clock).values(scrubbed_versions=destroyed))
            if done.rowcount == 0:  # no mark was ever stored
                connection.execute(
                    insert(clock).values(id=1, mark_us=0, scrubbed_versions=destroyed)
                )

        self.transactions.transact(remember)
        return True

    def fold_key_counts(self) -> None:
        """Keep the rows that counts of data keys are added up from few.

        Raises:
            StateUnavailable, StateCorrupt.
        """
        if self._shared:
            with self.transactions.locking() as connection:
                fold(connection)

    def recount_keys(self) -> bool:
        """See `key_counts.recount`. Writers wait meanwhile.

        Raises:
            StateUnavailable, StateCorrupt.
        """
        with self.transactions.locking() as connection:
            return recount(connection)

    def reach_milestone(self, name: str, details: str, now: datetime) -> str:
        """Record that something happened that happens once, unless it is recorded already; the
        details of the record that stands."""
        known = select(schema.milestones.c.details).where(schema.milestones.c.name == name)

        def reach(connection: Connection) -> str:
            before = connection.execute(known).scalar_one_or_none()
            if before is not None:
                return str(before)
            row = {"name": name, "time_us": to_us(now), "details": details}
            connection.execute(schema.milestones.insert().values(row))
            return details

        return self.transactions.transact(reach)

    def close(self) -> None:
        self.transactions.close()
