"""The tables. Times are UTC microseconds since 1970 as integers: exact on every database."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Sorted by bytes on every database, as SQLite does: pages go by these.
_ID = String(63).with_variant(String(63, collation="C"), "postgresql")
_PRINCIPAL = String(2048).with_variant(String(2048, collation="C"), "postgresql")
_UID = String(32).with_variant(String(32, collation="C"), "postgresql")

projects = Table(
    "projects",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("master_key", String(255), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("model", _ID, primary_key=True),
    Column("create_time_us", BigInteger, nullable=False),
    Column("labels", Text, nullable=False),  # JSON object of strings
    # The highest version number ever given: numbers are never given twice, rows may go.
    Column("last_number", Integer, nullable=False),
    ForeignKeyConstraint(["project"], ["projects.project"]),
)

versions = Table(
    "versions",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("model", _ID, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("uid", _UID, nullable=False, unique=True),
    Column("state", String(32), nullable=False),
    Column("publisher", String(2048), nullable=False),
    Column("request_id", String(36), nullable=False),
    Column("artifact_id", _UID, nullable=False, unique=True),
    Column("wrapped_key", Text, nullable=False),
    Column("master_key_version", Integer, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("finalize_time_us", BigInteger),
    Column("pin_length_bytes", BigInteger),
    Column("pin_floe_header_tag", LargeBinary(32)),
    Column("pin_digest", LargeBinary(32)),
    Column("revision", Integer, nullable=False),
    # Of a scheduled destruction, and of one that was done; else NULL.
    Column("destroy_scheduled_by", String(2048)),
    Column("destroy_confirmed_by", String(2048)),
    Column("destroy_due_us", BigInteger),
    Column("destroy_due_served_us", BigInteger),
    Column("destroy_artifact", Boolean),
    Column("destroy_time_us", BigInteger),
    ForeignKeyConstraint(["project", "model"], ["models.project", "models.model"]),
    UniqueConstraint("project", "model", "publisher", "request_id"),
    Index(None, "state", "create_time_us"),
    # What a rewrap changes is in no index: on PostgreSQL its updates then touch none (migration
    # 0011). Triggers count the data keys; a migration that makes this table anew takes them along.
)

# Data keys by master-key version (0: destroyed), to be added up; written by triggers alone. On
# PostgreSQL `part` is the transaction that wrote it.
key_counts = Table(
    "key_counts",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("master_key_version", Integer, primary_key=True),
    Column("part", BigInteger, primary_key=True, autoincrement=False),
    Column("data_keys", BigInteger, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("model", _ID, primary_key=True),
    Column("alias", _ID, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("update_time_us", BigInteger, nullable=False),
    ForeignKeyConstraint(
        ["project", "model", "number"], ["versions.project", "versions.model", "versions.number"]
    ),
)

leases = Table(
    "leases",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("lease", _UID, primary_key=True),
    Column("model", _ID, nullable=False),
    Column("number", Integer, nullable=False),
    Column("version_uid", _UID, nullable=False),
    Column("principal", String(2048), nullable=False),
    Column("instance", String(64), nullable=False),
    Column("issue_time_us", BigInteger, nullable=False),
    Column("expire_time_us", BigInteger, nullable=False),
    Column("absolute_end_time_us", BigInteger, nullable=False),
    Column("renewals", Integer, nullable=False),
    Column("revoke_time_us", BigInteger),
    # Number of the act that revoked it, from `revocations`.
    Column("revocation", BigInteger),
    # What renewals are judged by. The defaults are of rows that an older release writes.
    Column("suite", Integer, nullable=False, server_default="0"),
    Column("attributes", Text, nullable=False, server_default="{}"),
    Index(None, "project", "issue_time_us", "lease"),
    Index(None, "project", "model", "number"),
    Index(None, "expire_time_us"),
    Index(None, "principal", "project", "model"),
    Index(
        None,
        "revocation",
        sqlite_where=text("revocation IS NOT NULL"),
        postgresql_where=text("revocation IS NOT NULL"),
    ),
)

revocations = Table(
    "revocations",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("last", BigInteger, nullable=False),
)

blocks = Table(
    "blocks",
    metadata,
    Column("principal", _PRINCIPAL, primary_key=True),
    Column("reason", String(1024), nullable=False),
    Column("blocked_by", String(2048), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("until_us", BigInteger),
)

freezes = Table(
    "freezes",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("reason", String(1024), nullable=False),
    Column("frozen_by", String(2048), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    ForeignKeyConstraint(["project"], ["projects.project"]),
)

rewraps = Table(
    "rewraps",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("rewrap", _UID, primary_key=True),
    Column("state", String(32), nullable=False),
    Column("master_key", String(255), nullable=False),
    Column("target_version", Integer, nullable=False),
    Column("started_by", String(2048), nullable=False),
    Column("keys_per_second", Integer, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("rewrapped", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("update_time_us", BigInteger, nullable=False),
    Column("finish_time_us", BigInteger),
    # How far versions were given out; empty and 0 at the beginning of a pass.
    Column("cursor_model", _ID, nullable=False),
    Column("cursor_number", Integer, nullable=False),
    # When the rate allows the next data key.
    Column("paced_until_us", BigInteger, nullable=False),
    ForeignKeyConstraint(["project"], ["projects.project"]),
    Index(None, "state"),
)

# Ranges of versions that a worker has in hand, by (model, number), both ends included.
rewrap_claims = Table(
    "rewrap_claims",
    metadata,
    Column("claim", _UID, primary_key=True),
    Column("project", _ID, nullable=False),
    Column("rewrap", _UID, nullable=False),
    Column("first_model", _ID, nullable=False),
    Column("first_number", Integer, nullable=False),
    Column("last_model", _ID, nullable=False),
    Column("last_number", Integer, nullable=False),
    Column("expire_time_us", BigInteger, nullable=False),
    ForeignKeyConstraint(["project", "rewrap"], ["rewraps.project", "rewraps.rewrap"]),
    Index(None, "project", "rewrap", "expire_time_us"),
)

rewrap_failures = Table(
    "rewrap_failures",
    metadata,
    Column("project", _ID, primary_key=True),
    Column("rewrap", _UID, primary_key=True),
    Column("model", _ID, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("reason", String(64), nullable=False),
    ForeignKeyConstraint(["project", "rewrap"], ["rewraps.project", "rewraps.rewrap"]),
)

clock = Table(
    "clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("mark_us", BigInteger, nullable=False),
    # How long the service has been running: steps of the mark, each counted up to a limit.
    Column("served_us", BigInteger, nullable=False, server_default="0"),
    # How many versions were DESTROYED when deleted wrapped keys were last scrubbed from the files.
    Column("scrubbed_versions", BigInteger, nullable=False, server_default="0"),
)

# Decisions of policy, as far as they are kept: what it takes to explain and to replay them.
decisions = Table(
    "decisions",
    metadata,
    Column("id", _UID, primary_key=True),
    Column("time_us", BigInteger, nullable=False),
    Column("permitted", Boolean, nullable=False),
    Column("request", Text, nullable=False),  # JSON, secrets redacted
    Column("policies", Text, nullable=False),  # JSON array of ids
    Column("epoch", String(64), nullable=False),
    Column("repeats", Integer, nullable=False),
    Column("redacted", Boolean, nullable=False),
    Index(None, "time_us"),
)

# When which principal last did, or tried, what.
access_uses = Table(
    "access_uses",
    metadata,
    # SHA-256 of principal, action, project and model: ids may be too long for an index.
    Column("key", String(64), primary_key=True),
    Column("principal", String(2048), nullable=False),
    Column("action", String(63), nullable=False),
    Column("project", _ID, nullable=False),  # empty: the service
    Column("model", _ID, nullable=False),  # empty: the project
    Column("description", Text, nullable=False),  # JSON of the principal, secrets redacted
    Column("last_time_us", BigInteger, nullable=False),
    Column("last_permit_us", BigInteger),
    Index(None, "action", "project", "model"),
    Index(None, "last_time_us"),
)

# Where each process's audit chain stands.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("chain", _ID, primary_key=True),
    Column("records", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)

# Files that hold data keys, as `modelkms-server backup` made them.
backups = Table(
    "backups",
    metadata,
    Column("backup", _UID, primary_key=True),
    Column("location", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    # JSON object: the lowest version that it needs, by master key; NULL: it may need any.
    Column("oldest_versions", Text),
    Column("destroyed_by", String(2048), nullable=False),
    Column("destroy_reason", String(1024), nullable=False),
    Column("destroy_time_us", BigInteger),
    Index(None, "create_time_us", "backup"),
)

# What officers asked for: that old versions of a master key be destroyed in Vault.
trims = Table(
    "trims",
    metadata,
    Column("master_key", String(255), primary_key=True),
    Column("project", _ID, nullable=False),
    Column("oldest_version", Integer, nullable=False),
    Column("requested_by", String(2048), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("expire_time_us", BigInteger, nullable=False),
    Column("confirmed_by", String(2048), nullable=False),
    ForeignKeyConstraint(["project"], ["projects.project"]),
)

# How often each sweep was begun; see `turns`.
sweeps = Table(
    "sweeps",
    metadata,
    Column("sweep", String(63), primary_key=True),
    Column("turn", BigInteger, nullable=False),
)

# What happens once in the life of a deployment.
milestones = Table(
    "milestones",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("time_us", BigInteger, nullable=False),
    Column("details", Text, nullable=False),
)


STORED = tuple(table for table in metadata.sorted_tables if table is not key_counts)
"""What a backup holds, parents first: all but what follows from it."""
