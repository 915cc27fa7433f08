"""Rewrap operations: what is left is read from the versions; what is in hand is claimed by range.

The transactions here lock the operation's row and compare before they swap, so READ COMMITTED is
enough, and none of them makes a lease or a publish lose (`engine.Transactions.locking`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    delete,
    exists,
    insert,
    select,
    text,
    tuple_,
    update,
)

from kms_service.adapters.database import schema
from kms_service.adapters.database.engine import Transactions
from kms_service.adapters.database.key_counts import counts_of_project
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.names import ProjectName, RewrapName, VersionName
from kms_service.domain.rewrapping import (
    Finished,
    NothingYet,
    Rewrap,
    RewrapBatch,
    RewrapFailure,
    RewrapItem,
    Rewrapped,
    RewrapState,
)

CLAIM_FOR = timedelta(seconds=20)
"""Longer than any call of Vault and the database may take; after it others may redo the work."""
_OTHERS_WORK = timedelta(milliseconds=200)
_SECOND_US = 1_000_000

_REWRAPS, _CLAIMS, _FAILURES = schema.rewraps, schema.rewrap_claims, schema.rewrap_failures
_VERSIONS = schema.versions

# One statement for the whole batch; SQLite's own way of many is as fast. Lists travel as one text
# each, since the driver's arrays cost more than the update. No uid has a comma, and no wrapped key
# that Vault has read or written; whatever were out of step would match no row.
_SWAP_MANY = text(
    """
    UPDATE versions SET wrapped_key = new.wrapped_key, master_key_version = new.version,
        revision = revision + 1
    FROM unnest(string_to_array(:uids, ','), string_to_array(:old, ','),
                string_to_array(:new, ','), CAST(string_to_array(:versions, ',') AS int[]))
        AS new (uid, old_key, wrapped_key, version)
    WHERE versions.uid = new.uid COLLATE "C" AND versions.wrapped_key = new.old_key
    """
)
# Row by row through the index of uids. Left to itself, the planner hashes a table of a hundred
# thousand versions for each batch of five thousand.
_BY_INDEX = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
# Given to the driver as it is: SQLAlchemy's part in each row would cost more than SQLite's.
_SWAP_ONE = """
    UPDATE versions SET wrapped_key = ?, master_key_version = ?, revision = revision + 1
    WHERE uid = ? AND wrapped_key = ?
"""


class SqlRewraps:
    """Implements `domain.ports.Rewraps`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def start(self, rewrap: Rewrap) -> Rewrap:
        def work(connection: Connection) -> Rewrap:
            unfinished = _first(
                connection,
                _of_project(rewrap.name.parent).where(_REWRAPS.c.state != RewrapState.DONE.value),
            )
            if unfinished is not None:
                return unfinished
            total = _count_older(connection, rewrap.name.parent, rewrap.target_version)
            connection.execute(insert(_REWRAPS).values(**_columns(rewrap), **_BEGINNING))
            connection.execute(update(_REWRAPS).where(*_named(rewrap.name)).values(total=total))
            stored = _first(connection, select(_REWRAPS).where(*_named(rewrap.name)))
            assert stored is not None
            return stored

        return self._transactions.transact(work)  # two that start at once: one of them joins

    def get(self, name: RewrapName) -> Rewrap | None:
        with self._transactions.read() as connection:
            return _first(connection, select(_REWRAPS).where(*_named(name)))

    def latest(self, project: ProjectName) -> Rewrap | None:
        query = _of_project(project).order_by(
            _REWRAPS.c.create_time_us.desc(), _REWRAPS.c.rewrap.desc()
        )
        with self._transactions.read() as connection:
            return _first(connection, query)

    def running(self) -> Sequence[Rewrap]:
        query = (
            select(_REWRAPS)
            .where(_REWRAPS.c.state == RewrapState.RUNNING.value)
            .order_by(_REWRAPS.c.create_time_us)
        )
        with self._transactions.read() as connection:
            return [_rewrap(row) for row in connection.execute(query)]

    def change(self, name: RewrapName, change: Callable[[Rewrap], Rewrap]) -> Rewrap | None:
        with self._transactions.locking() as connection:
            found = _first(connection, select(_REWRAPS).where(*_named(name)).with_for_update())
            if found is None:
                return None
            changed = change(found)
            connection.execute(
                update(_REWRAPS)
                .where(*_named(name))
                .values(
                    state=changed.state.value,
                    keys_per_second=changed.keys_per_second,
                    update_time_us=to_us(changed.update_time),
                )
            )
            return changed

    # --- work -----------------------------------------------------------------------------------

    def claim(
        self, name: RewrapName, size: int, now: datetime
    ) -> RewrapBatch | NothingYet | Finished | None:
        with self._transactions.locking() as connection:
            row = connection.execute(
                select(_REWRAPS).where(*_named(name)).with_for_update()
            ).one_or_none()
            if row is None or row.state != RewrapState.RUNNING.value:
                return None
            rewrap, now_us = _rewrap(row), to_us(now)
            if row.paced_until_us > now_us:
                return NothingYet(timedelta(microseconds=row.paced_until_us - now_us))
            if rewrap.keys_per_second:  # in pieces of a tenth of a second: others fit between
                size = max(1, min(size, rewrap.keys_per_second // 10))
            batch = self._abandoned(connection, rewrap, size, now) or self._next(
                connection, row, rewrap, size, now
            )
            if batch is not None:
                _pace(connection, row, rewrap, len(batch.items), now_us)
                return batch
            if connection.execute(select(exists().where(*_claims_of(name))).limit(1)).scalar_one():
                return NothingYet(_OTHERS_WORK)
            return _finish(connection, rewrap, now)

    def _abandoned(
        self, connection: Connection, rewrap: Rewrap, size: int, now: datetime
    ) -> RewrapBatch | None:
        """What is left in the range of one who never came back."""
        while True:
            claim = connection.execute(
                select(_CLAIMS)
                .where(*_claims_of(rewrap.name), _CLAIMS.c.expire_time_us <= to_us(now))
                .order_by(_CLAIMS.c.expire_time_us)
                .limit(1)
            ).one_or_none()
            if claim is None:
                return None
            connection.execute(delete(_CLAIMS).where(_CLAIMS.c.claim == claim.claim))
            first, last = (
                (claim.first_model, claim.first_number - 1),
                (claim.last_model, claim.last_number),
            )
            items = _older(connection, rewrap, first, last, size)
            if items:
                # Of what does not fit into this batch, another is abandoned at once.
                end = (items[-1].version.model, items[-1].version.number)
                if len(items) == size and end != last:
                    rest = (items[-1].version.model, items[-1].version.number + 1)
                    _store_claim(connection, rewrap.name, rest, last, claim.expire_time_us)
                return _claimed(connection, rewrap, items, now)

    def _next(
        self,
        connection: Connection,
        row: Row[Any],
        rewrap: Rewrap,
        size: int,
        now: datetime,
    ) -> RewrapBatch | None:
        """From where it was left off; at the end once more from the beginning, if nobody has any
        in hand, for what came in behind us."""
        items = _older(connection, rewrap, (row.cursor_model, row.cursor_number), None, size)
        if not items and row.cursor_model:
            if connection.execute(select(exists().where(*_claims_of(rewrap.name)))).scalar_one():
                return None
            items = _older(connection, rewrap, ("", 0), None, size)
        if not items:
            return None
        end = items[-1].version
        connection.execute(
            update(_REWRAPS)
            .where(*_named(rewrap.name))
            .values(cursor_model=end.model, cursor_number=end.number)
        )
        return _claimed(connection, rewrap, items, now)

    def settle(
        self,
        batch: RewrapBatch,
        rewrapped: Sequence[Rewrapped],
        failed: Sequence[RewrapFailure],
        now: datetime,
        *,
        whole: bool,
    ) -> int:
        name = batch.rewrap.name
        with self._transactions.locking() as connection:
            swapped = _swap(connection, rewrapped)
            noted = _note_failures(connection, name, failed)
            claim = _CLAIMS.c.claim == batch.claim
            if whole:
                connection.execute(delete(_CLAIMS).where(claim))
            else:
                connection.execute(update(_CLAIMS).where(claim).values(expire_time_us=0))
            # Last, so that the row all workers share is locked for the shortest time.
            connection.execute(
                update(_REWRAPS)
                .where(*_named(name))
                .values(
                    rewrapped=_REWRAPS.c.rewrapped + swapped,
                    failed=_REWRAPS.c.failed + noted,
                    update_time_us=to_us(now),
                )
            )
            return swapped

    def failures(self, name: RewrapName, limit: int) -> Sequence[RewrapFailure]:
        query = (
            select(_FAILURES)
            .where(_FAILURES.c.project == name.project, _FAILURES.c.rewrap == name.rewrap)
            .order_by(_FAILURES.c.model, _FAILURES.c.number)
            .limit(limit)
        )
        with self._transactions.read() as connection:
            return [
                RewrapFailure(VersionName(row.project, row.model, row.number), row.reason)
                for row in connection.execute(query)
            ]

    def keys_under_older(self, project: ProjectName, version: int) -> int:
        with self._transactions.read() as connection:
            return _count_older(connection, project, version)


_BEGINNING = {"cursor_model": "", "cursor_number": 0, "paced_until_us": 0}


def _older(
    connection: Connection,
    rewrap: Rewrap,
    after: tuple[str, int],
    until: tuple[str, int] | None,
    size: int,
) -> Sequence[RewrapItem]:
    """Data keys under an older version that did not fail in this operation, in the order of
    (model, number). DESTROYED versions have none: their master-key version is 0."""
    table, failure = _VERSIONS, _FAILURES
    key = tuple_(table.c.model, table.c.number)
    query = (
        select(
            table.c.model,
            table.c.number,
            table.c.uid,
            table.c.wrapped_key,
            table.c.master_key_version,
        )
        .where(
            table.c.project == rewrap.name.project,
            key > tuple_(*after),
            table.c.master_key_version > 0,
            table.c.master_key_version < rewrap.target_version,
            ~exists().where(
                failure.c.project == table.c.project,
                failure.c.rewrap == rewrap.name.rewrap,
                failure.c.model == table.c.model,
                failure.c.number == table.c.number,
            ),
        )
        .order_by(table.c.model, table.c.number)
        .limit(size)
    )
    if until is not None:
        query = query.where(key <= tuple_(*until))
    return [
        RewrapItem(
            VersionName(rewrap.name.project, model, number),
            uid,
            WrappedDataKey(wrapped_key, version),
        )
        for model, number, uid, wrapped_key, version in connection.execute(query).all()
    ]


def _claimed(
    connection: Connection, rewrap: Rewrap, items: Sequence[RewrapItem], now: datetime
) -> RewrapBatch:
    first, last = items[0].version, items[-1].version
    claim = _store_claim(
        connection,
        rewrap.name,
        (first.model, first.number),
        (last.model, last.number),
        to_us(now + CLAIM_FOR),
    )
    return RewrapBatch(rewrap, claim, items)


def _store_claim(
    connection: Connection,
    name: RewrapName,
    first: tuple[str, int],
    last: tuple[str, int],
    expire_time_us: int,
) -> str:
    claim = secrets.token_hex(16)
    connection.execute(
        insert(_CLAIMS).values(
            claim=claim,
            project=name.project,
            rewrap=name.rewrap,
            first_model=first[0],
            first_number=first[1],
            last_model=last[0],
            last_number=last[1],
            expire_time_us=expire_time_us,
        )
    )
    return claim


def _pace(connection: Connection, row: Row[Any], rewrap: Rewrap, count: int, now_us: int) -> None:
    if not rewrap.keys_per_second:
        return
    begin_us = max(now_us, row.paced_until_us)
    connection.execute(
        update(_REWRAPS)
        .where(*_named(rewrap.name))
        .values(paced_until_us=begin_us + count * _SECOND_US // rewrap.keys_per_second)
    )


def _finish(connection: Connection, rewrap: Rewrap, now: datetime) -> Finished:
    connection.execute(
        update(_REWRAPS)
        .where(*_named(rewrap.name))
        .values(state=RewrapState.DONE.value, update_time_us=to_us(now), finish_time_us=to_us(now))
    )
    ended = _first(connection, select(_REWRAPS).where(*_named(rewrap.name)))
    assert ended is not None
    return Finished(ended)


def _swap(connection: Connection, rewrapped: Sequence[Rewrapped]) -> int:
    if not rewrapped:
        return 0
    if connection.dialect.name == "postgresql":
        lists = {
            "uids": ",".join([each.item.uid for each in rewrapped]),
            "old": ",".join([each.item.wrapped_key.ciphertext for each in rewrapped]),
            "new": ",".join([each.wrapped_key.ciphertext for each in rewrapped]),
            "versions": ",".join([str(each.wrapped_key.master_key_version) for each in rewrapped]),
        }
        connection.exec_driver_sql(_BY_INDEX)
        return int(connection.execute(_SWAP_MANY, lists).rowcount)
    rows = [
        (
            each.wrapped_key.ciphertext,
            each.wrapped_key.master_key_version,
            each.item.uid,
            each.item.wrapped_key.ciphertext,
        )
        for each in rewrapped
    ]
    return int(connection.exec_driver_sql(_SWAP_ONE, rows).rowcount)


def _note_failures(
    connection: Connection, name: RewrapName, failed: Sequence[RewrapFailure]
) -> int:
    """Each once, though two workers found it; how many are new."""
    noted = 0
    for failure in failed:
        key = {"model": failure.version.model, "number": failure.version.number}
        known = connection.execute(
            select(
                exists().where(
                    _FAILURES.c.project == name.project,
                    _FAILURES.c.rewrap == name.rewrap,
                    and_(*(_FAILURES.c[column] == value for column, value in key.items())),
                )
            )
        ).scalar_one()
        if not known:
            connection.execute(
                insert(_FAILURES).values(
                    project=name.project, rewrap=name.rewrap, reason=failure.reason, **key
                )
            )
            noted += 1
    return noted


def _count_older(connection: Connection, project: ProjectName, version: int) -> int:
    under = counts_of_project(connection, project)
    return sum(keys for under_version, keys in under.items() if under_version < version)


def _of_project(project: ProjectName) -> Select[Any]:
    return select(_REWRAPS).where(_REWRAPS.c.project == project.project)


def _named(name: RewrapName) -> list[Any]:
    return [_REWRAPS.c.project == name.project, _REWRAPS.c.rewrap == name.rewrap]


def _claims_of(name: RewrapName) -> list[Any]:
    return [_CLAIMS.c.project == name.project, _CLAIMS.c.rewrap == name.rewrap]


def _first(connection: Connection, query: Select[Any]) -> Rewrap | None:
    row = connection.execute(query.limit(1)).one_or_none()
    return _rewrap(row) if row is not None else None


def _columns(rewrap: Rewrap) -> dict[str, object]:
    return {
        "project": rewrap.name.project,
        "rewrap": rewrap.name.rewrap,
        "state": rewrap.state.value,
        "master_key": rewrap.master_key,
        "target_version": rewrap.target_version,
        "started_by": rewrap.started_by,
        "keys_per_second": rewrap.keys_per_second,
        "total": rewrap.total,
        "rewrapped": rewrap.rewrapped,
        "failed": rewrap.failed,
        "create_time_us": to_us(rewrap.create_time),
        "update_time_us": to_us(rewrap.update_time),
        "finish_time_us": to_us(rewrap.finish_time) if rewrap.finish_time else None,
    }


def _rewrap(row: Row[Any]) -> Rewrap:
    return Rewrap(
        name=RewrapName(row.project, row.rewrap),
        state=RewrapState(row.state),
        master_key=row.master_key,
        target_version=row.target_version,
        started_by=row.started_by,
        keys_per_second=row.keys_per_second,
        total=row.total,
        rewrapped=row.rewrapped,
        failed=row.failed,
        create_time=from_us(row.create_time_us),
        update_time=from_us(row.update_time_us),
        finish_time=from_us(row.finish_time_us) if row.finish_time_us is not None else None,
    )
