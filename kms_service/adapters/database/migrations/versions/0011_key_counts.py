"""Data keys are counted as they come and go; a rewrap changes a row where it stands

Revision ID: 0011
Revises: 0010

An index of `master_key_version` makes every swap of a rewrap write to all six indexes of the row
(PostgreSQL: no heap-only update, five times the work and four times the log), and counting by it
takes longer with every version. So the counts are kept by triggers, whoever writes, a replica of
the release before included; and a page is left half empty, so that the new row fits beside the old.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_ID = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
_INDEX = "ix_versions_project_master_key_version"

# On SQLite writers take turns, so there is one row for each count.
_SQLITE_ADD = """
    INSERT INTO key_counts (project, master_key_version, part, data_keys)
    VALUES ({row}.project, {row}.master_key_version, 0, {keys})
    ON CONFLICT (project, master_key_version, part)
    DO UPDATE SET data_keys = data_keys + excluded.data_keys;
"""
_MOVED = (
    "UPDATE OF master_key_version ON versions WHEN new.master_key_version <> old.master_key_version"
)
_SQLITE = {
    "count_inserted": ("INSERT ON versions", [("new", 1)]),
    "count_deleted": ("DELETE ON versions", [("old", -1)]),
    "count_moved": (_MOVED, [("old", -1), ("new", 1)]),
}

# On PostgreSQL each transaction adds rows of its own, one for each count that it changed: nobody
# waits for, or loses against, another who counts. `modelkms-server` adds them up now and then.
_POSTGRESQL_FUNCTION = """
    CREATE FUNCTION count_data_keys() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            DELETE FROM key_counts;
        ELSIF TG_OP = 'INSERT' THEN
            INSERT INTO key_counts AS kept (project, master_key_version, part, data_keys)
            SELECT project, master_key_version, pg_current_xact_id()::text::bigint, count(*)
            FROM added GROUP BY project, master_key_version
            ON CONFLICT (project, master_key_version, part)
            DO UPDATE SET data_keys = kept.data_keys + excluded.data_keys;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO key_counts AS kept (project, master_key_version, part, data_keys)
            SELECT project, master_key_version, pg_current_xact_id()::text::bigint, -count(*)
            FROM removed GROUP BY project, master_key_version
            ON CONFLICT (project, master_key_version, part)
            DO UPDATE SET data_keys = kept.data_keys + excluded.data_keys;
        ELSE
            INSERT INTO key_counts AS kept (project, master_key_version, part, data_keys)
            SELECT project, master_key_version, pg_current_xact_id()::text::bigint, sum(change)
            FROM (
                SELECT project, master_key_version, 1 AS change FROM added
                UNION ALL SELECT project, master_key_version, -1 FROM removed
            ) AS moved
            GROUP BY project, master_key_version HAVING sum(change) <> 0
            ON CONFLICT (project, master_key_version, part)
            DO UPDATE SET data_keys = kept.data_keys + excluded.data_keys;
        END IF;
        RETURN NULL;
    END $$
"""
_POSTGRESQL = {
    "count_inserted": "INSERT ON versions REFERENCING NEW TABLE AS added",
    "count_deleted": "DELETE ON versions REFERENCING OLD TABLE AS removed",
    "count_moved": "UPDATE ON versions REFERENCING OLD TABLE AS removed NEW TABLE AS added",
    "count_truncated": "TRUNCATE ON versions",
}


def upgrade() -> None:
    op.create_table(
        "key_counts",
        sa.Column("project", _ID, nullable=False),
        sa.Column("master_key_version", sa.Integer(), nullable=False),
        sa.Column("part", sa.BigInteger(), nullable=False),
        sa.Column("data_keys", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "project", "master_key_version", "part", name=op.f("pk_key_counts")
        ),
    )
    # Triggers first: from then on nobody writes versions until all of this is committed.
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_POSTGRESQL_FUNCTION)
        for name, event in _POSTGRESQL.items():
            op.execute(
                f"CREATE TRIGGER {name} AFTER {event}"
                " FOR EACH STATEMENT EXECUTE FUNCTION count_data_keys()"
            )
        op.execute("ALTER TABLE versions SET (fillfactor = 50)")
    else:
        for name, (event, changes) in _SQLITE.items():
            body = "".join(_SQLITE_ADD.format(row=row, keys=keys) for row, keys in changes)
            op.execute(f"CREATE TRIGGER {name} AFTER {event} BEGIN {body} END")
    op.execute(
        "INSERT INTO key_counts (project, master_key_version, part, data_keys)"
        " SELECT project, master_key_version, 0, count(*) FROM versions"
        " GROUP BY project, master_key_version"
    )
    op.drop_index(_INDEX, table_name="versions")


def downgrade() -> None:
    op.create_index(_INDEX, "versions", ["project", "master_key_version"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE versions RESET (fillfactor)")
        for name in _POSTGRESQL:
            op.execute(f"DROP TRIGGER {name} ON versions")
        op.execute("DROP FUNCTION count_data_keys()")
    else:
        for name in _SQLITE:
            op.execute(f"DROP TRIGGER {name}")
    op.drop_table("key_counts")
