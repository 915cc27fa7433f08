"""The registry of backups."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select

from kms_service.adapters.database import schema
from kms_service.adapters.database.pages import decode_token, encode_token, page_of
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.backups import Backup
from kms_service.domain.ports import Page

_TABLE = schema.backups


class SqlBackupTable:
    """Implements `domain.ports.BackupTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, backup_id: str) -> Backup | None:
        row = self._connection.execute(
            select(_TABLE).where(_TABLE.c.backup == backup_id)
        ).one_or_none()
        return _backup(row) if row is not None else None

    def put(self, backup: Backup) -> None:
        self._connection.execute(delete(_TABLE).where(_TABLE.c.backup == backup.id))
        oldest = backup.oldest_versions
        self._connection.execute(
            insert(_TABLE).values(
                backup=backup.id,
                location=backup.location,
                create_time_us=to_us(backup.create_time),
                oldest_versions=None if oldest is None else json.dumps(dict(oldest)),
                destroyed_by=backup.destroyed_by,
                destroy_reason=backup.destroy_reason,
                destroy_time_us=to_us(backup.destroy_time) if backup.destroy_time else None,
            )
        )

    def list(self, page_size: int, page_token: str) -> Page[Backup]:
        time, key = _TABLE.c.create_time_us, _TABLE.c.backup
        query = select(_TABLE).order_by(time.desc(), key.desc()).limit(page_size + 1)
        if (after := decode_token(page_token, int, str)) is not None:
            before = after[0]
            query = query.where(or_(time < before, and_(time == before, key < after[1])))
        items = [_backup(row) for row in self._connection.execute(query)]
        return page_of(
            items, page_size, lambda last: encode_token(to_us(last.create_time), last.id)
        )

    def not_destroyed(self) -> Sequence[Backup]:
        query = (
            select(_TABLE)
            .where(_TABLE.c.destroy_time_us.is_(None))
            .order_by(_TABLE.c.create_time_us, _TABLE.c.backup)
        )
        return [_backup(row) for row in self._connection.execute(query)]


def oldest_versions(connection: Connection) -> dict[str, int]:
    """The lowest master-key version that a data key is under, by master key."""
    versions, projects = schema.versions, schema.projects
    query = (
        select(projects.c.master_key, func.min(versions.c.master_key_version))
        .join(projects, projects.c.project == versions.c.project)
        .where(versions.c.master_key_version > 0)  # DESTROYED versions have no data key
        .group_by(projects.c.master_key)
    )
    return {name: int(version) for name, version in connection.execute(query)}


def _backup(row: Row[tuple[object, ...]]) -> Backup:
    return Backup(
        id=row.backup,
        location=row.location,
        create_time=from_us(row.create_time_us),
        oldest_versions=None if row.oldest_versions is None else json.loads(row.oldest_versions),
        destroyed_by=row.destroyed_by,
        destroy_reason=row.destroy_reason,
        destroy_time=from_us(row.destroy_time_us) if row.destroy_time_us is not None else None,
    )
