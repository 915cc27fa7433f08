"""Leases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update

from kms_service.adapters.database import schema
from kms_service.adapters.database.pages import decode_token, encode_token, page_of
from kms_service.adapters.database.prepared import Prepared
from kms_service.adapters.database.seen import seen_of
from kms_service.adapters.database.standing_tables import last_revocation, next_revocation
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.errors import ConcurrentUpdate
from kms_service.domain.leases import Lease
from kms_service.domain.names import LeaseName, VersionName
from kms_service.domain.ports import LeaseFilter, Page, Revoked

_TABLE = schema.leases
_INSERT = Prepared(
    insert(_TABLE), [column.name for column in _TABLE.columns if column is not _TABLE.c.revocation]
)
"""Of every lease (see `prepared`)."""


class SqlLeaseTable:
    """Implements `domain.ports.LeaseTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: LeaseName) -> Lease | None:
        row = self._connection.execute(select(_TABLE).where(*_named(name))).one_or_none()
        return _lease(row) if row is not None else None

    def insert(self, lease: Lease) -> None:
        _INSERT.run(
            self._connection,
            {
                "project": lease.name.project,
                "lease": lease.name.lease,
                "model": lease.version.model,
                "number": lease.version.number,
                "version_uid": lease.version_uid,
                "principal": lease.principal,
                "instance": lease.instance,
                "issue_time_us": to_us(lease.issue_time),
                "expire_time_us": to_us(lease.expire_time),
                "absolute_end_time_us": to_us(lease.absolute_end_time),
                "renewals": lease.renewals,
                "revoke_time_us": to_us(lease.revoke_time) if lease.revoke_time else None,
                "suite": lease.suite,
                "attributes": json.dumps(dict(lease.attributes), sort_keys=True)
                if lease.attributes
                else "{}",
            },
        )
        if (seen := seen_of(self._connection)) is not None:
            seen.leases_written(1)

    def renew(self, lease: Lease) -> None:
        changed = self._connection.execute(
            update(_TABLE)
            .where(
                *_named(lease.name),
                _TABLE.c.renewals == lease.renewals - 1,
                _TABLE.c.revoke_time_us.is_(None),
            )
            .values(expire_time_us=to_us(lease.expire_time), renewals=lease.renewals)
        )
        if changed.rowcount != 1:
            raise ConcurrentUpdate

    def revoke(self, which: LeaseFilter | LeaseName, now: datetime) -> int:
        wanted = _named(which) if isinstance(which, LeaseName) else _matching(which)
        if not wanted:
            raise ValueError("a filter that matches every lease there is")
        ended = self._connection.execute(
            update(_TABLE)
            .where(*wanted, *_live(now))
            .values(revoke_time_us=to_us(now), revocation=next_revocation(self._connection))
        )
        return int(ended.rowcount)

    def last_revocation(self) -> int:
        return last_revocation(self._connection)

    def revoked_after(self, revocation: int, limit: int) -> Sequence[Revoked]:
        columns = (_TABLE.c.revocation, _TABLE.c.project, _TABLE.c.lease)
        after = select(*columns).where(_TABLE.c.revocation > revocation)
        rows = self._connection.execute(after.order_by(_TABLE.c.revocation).limit(limit)).all()
        if len(rows) == limit:
            # The last act may have ended more: whoever goes on after its number has seen them all.
            last = rows[-1].revocation
            rest = select(*columns).where(_TABLE.c.revocation == last)
            rows = [row for row in rows if row.revocation != last]
            rows += self._connection.execute(rest).all()
        return [Revoked(row.revocation, LeaseName(row.project, row.lease)) for row in rows]

    def count(self, which: LeaseFilter) -> int:
        return int(
            self._connection.execute(
                select(func.count()).select_from(_TABLE).where(*_matching(which))
            ).scalar_one()
        )

    def list(self, which: LeaseFilter, page_size: int, page_token: str) -> Page[Lease]:
        query = (
            select(_TABLE)
            .where(*_matching(which))
            .order_by(_TABLE.c.issue_time_us.desc(), _TABLE.c.lease.desc())
            .limit(page_size + 1)
        )
        if (after := decode_token(page_token, int, str)) is not None:
            issue_time_us, lease = after
            query = query.where(
                or_(
                    _TABLE.c.issue_time_us < issue_time_us,
                    and_(_TABLE.c.issue_time_us == issue_time_us, _TABLE.c.lease < lease),
                )
            )
        items = [_lease(row) for row in self._connection.execute(query)]
        return page_of(
            items, page_size, lambda lease: encode_token(to_us(lease.issue_time), lease.name.lease)
        )

    def count_live(self, now: datetime) -> int:
        return int(
            self._connection.execute(
                select(func.count()).select_from(_TABLE).where(*_live(now))
            ).scalar_one()
        )


def _named(name: LeaseName) -> list[Any]:
    return [_TABLE.c.project == name.project, _TABLE.c.lease == name.lease]


def _live(now: datetime) -> list[Any]:
    return [_TABLE.c.revoke_time_us.is_(None), _TABLE.c.expire_time_us > to_us(now)]


def _matching(which: LeaseFilter) -> list[Any]:
    wanted = {
        _TABLE.c.project: which.project,
        _TABLE.c.principal: which.principal,
        _TABLE.c.instance: which.instance,
        _TABLE.c.model: which.model,
        _TABLE.c.number: which.number,
    }
    conditions: list[Any] = [
        column == value for column, value in wanted.items() if value is not None
    ]
    if which.live_at is not None:
        conditions += _live(which.live_at)
    return conditions


def _lease(row: Row[tuple[object, ...]]) -> Lease:
    return Lease(
        name=LeaseName(row.project, row.lease),
        version=VersionName(row.project, row.model, row.number),
        version_uid=row.version_uid,
        principal=row.principal,
        instance=row.instance,
        issue_time=from_us(row.issue_time_us),
        expire_time=from_us(row.expire_time_us),
        absolute_end_time=from_us(row.absolute_end_time_us),
        renewals=row.renewals,
        revoke_time=from_us(row.revoke_time_us) if row.revoke_time_us is not None else None,
        suite=row.suite,
        attributes=json.loads(row.attributes),
    )
