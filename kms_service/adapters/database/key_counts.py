"""How many data keys are under which version of a master key: kept by the triggers of migration
0011, whoever writes versions, so that asking costs the same for a thousand and for a million."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, text

from kms_service.adapters.database import schema
from kms_service.domain.catalogue import NO_DATA_KEY
from kms_service.domain.names import ProjectName

_COUNTS = schema.key_counts
_NOTHING = NO_DATA_KEY.master_key_version

# Of two who do it at once, the second finds what the first left.
_FOLD = text(
    """
    WITH counted AS (DELETE FROM key_counts RETURNING project, master_key_version, data_keys)
    INSERT INTO key_counts (project, master_key_version, part, data_keys)
    SELECT project, master_key_version, pg_current_xact_id()::text::bigint, sum(data_keys)
    FROM counted GROUP BY project, master_key_version HAVING sum(data_keys) <> 0
    """
)

_LOCK_POSTGRESQL = text("LOCK TABLE versions IN SHARE MODE")  # readers go on, writers wait
_COUNT_ANEW = text(
    """
    INSERT INTO key_counts (project, master_key_version, part, data_keys)
    SELECT project, master_key_version, 0, count(*) FROM versions
    GROUP BY project, master_key_version
    """
)


def counts_of_project(connection: Connection, project: ProjectName) -> dict[int, int]:
    """Data keys by master-key version; versions without any are left out."""
    counts = _counts(
        connection, _COUNTS.c.project == project.project, _COUNTS.c.master_key_version > _NOTHING
    )
    return {version: keys for (_, version), keys in counts.items()}


def fold(connection: Connection) -> None:
    """Add up what each transaction on PostgreSQL wrote a row of its own for (part: its id)."""
    connection.execute(_FOLD)


def recount(connection: Connection) -> bool:
    """Count row by row, and keep that; whether the counts that were kept were others. They are
    after rows were put back by something that runs no triggers."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_POSTGRESQL)
    before = _counts(connection)
    connection.execute(_COUNTS.delete())
    connection.execute(_COUNT_ANEW)
    return _counts(connection) != before


def _counts(connection: Connection, *conditions: ColumnElement[bool]) -> dict[tuple[str, int], int]:
    total: ColumnElement[Any] = func.sum(_COUNTS.c.data_keys)
    columns = _COUNTS.c.project, _COUNTS.c.master_key_version
    rows = connection.execute(
        select(*columns, total).where(*conditions).group_by(*columns).having(total != 0)
    )
    return {(project, version): int(keys) for project, version, keys in rows}
