"""Trims of master keys that were asked for."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from kms_service.adapters.database import schema
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.names import ProjectName
from kms_service.domain.trims import Trim

_TABLE = schema.trims


class SqlTrimTable:
    """Implements `domain.ports.TrimTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, master_key: str) -> Trim | None:
        row = self._connection.execute(
            select(_TABLE).where(_TABLE.c.master_key == master_key)
        ).one_or_none()
        if row is None:
            return None
        return Trim(
            master_key=row.master_key,
            project=ProjectName(row.project),
            oldest_version=row.oldest_version,
            requested_by=row.requested_by,
            create_time=from_us(row.create_time_us),
            expire_time=from_us(row.expire_time_us),
            confirmed_by=row.confirmed_by,
        )

    def put(self, trim: Trim) -> None:
        self._connection.execute(delete(_TABLE).where(_TABLE.c.master_key == trim.master_key))
        self._connection.execute(
            insert(_TABLE).values(
                master_key=trim.master_key,
                project=trim.project.project,
                oldest_version=trim.oldest_version,
                requested_by=trim.requested_by,
                create_time_us=to_us(trim.create_time),
                expire_time_us=to_us(trim.expire_time),
                confirmed_by=trim.confirmed_by,
            )
        )
