"""Leases that are over: which of them may go."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, delete, exists, or_, select

from kms_service.adapters.database import schema
from kms_service.adapters.database.times import to_us
from kms_service.domain.names import LeaseName

_TABLE = schema.leases
_LATER = schema.leases.alias("later")


class SqlEndedLeaseTable:
    """Implements `domain.ports.EndedLeaseTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, expired_before: datetime, limit: int) -> Sequence[LeaseName]:
        # Rows of one principal and model, by their index; a later one of the version ends the look.
        followed = exists().where(
            _LATER.c.principal == _TABLE.c.principal,
            _LATER.c.project == _TABLE.c.project,
            _LATER.c.model == _TABLE.c.model,
            _LATER.c.number == _TABLE.c.number,
            or_(
                _LATER.c.issue_time_us > _TABLE.c.issue_time_us,
                and_(
                    _LATER.c.issue_time_us == _TABLE.c.issue_time_us,
                    _LATER.c.lease > _TABLE.c.lease,
                ),
            ),
        )
        rows = self._connection.execute(
            select(_TABLE.c.project, _TABLE.c.lease)
            .where(_TABLE.c.expire_time_us < to_us(expired_before), followed)
            .order_by(_TABLE.c.expire_time_us)
            .limit(limit)
        )
        return [LeaseName(row.project, row.lease) for row in rows]

    def delete(self, names: Sequence[LeaseName]) -> int:
        deleted = 0
        for project in {name.project for name in names}:
            leases = [name.lease for name in names if name.project == project]
            deleted += self._connection.execute(
                delete(_TABLE).where(_TABLE.c.project == project, _TABLE.c.lease.in_(leases))
            ).rowcount
        return deleted
