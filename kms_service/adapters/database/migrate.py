"""Brings a database's schema to this version's, and tells where it is."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from kms_service.adapters.database.engine import EngineOptions, Transactions, transactions_of

_MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATION_S = 3600.0


class SchemaState(Enum):
    """How a database's schema stands to this version's."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"
    """Unknown to this version: made by a later one."""


def migrate(url: str, options: EngineOptions | None = None) -> None:
    """Create or upgrade the schema. Does nothing where it is current.

    Raises:
        ConfigurationError: the URL cannot be used.
        StateUnavailable, StateCorrupt: the database cannot be, or others hold its tables.
    """
    # A migration may take longer than any request.
    patient = replace(options or EngineOptions(), statement_timeout_s=_MIGRATION_S)
    transactions = transactions_of(url, patient)
    try:
        with transactions.upgrade() as connection:
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        transactions.close()


def schema_state(url: str, options: EngineOptions | None = None) -> SchemaState:
    """
    Raises: as `migrate`.
    """
    transactions: Transactions = transactions_of(url, options or EngineOptions())
    try:
        with transactions.read() as connection:
            return schema_state_of(connection)
    finally:
        transactions.close()


def schema_revision(connection: Connection) -> str | None:
    """Number of the schema's last migration; None if there is no schema."""
    return MigrationContext.configure(connection).get_current_revision()


def schema_state_of(connection: Connection) -> SchemaState:
    """The state seen through an open connection."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None:
        return SchemaState.EMPTY
    head, known = _revisions()
    if found == head:
        return SchemaState.CURRENT
    return SchemaState.OLDER if found in known else SchemaState.NEWER


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The last migration, and all: read once, since to load them takes as long as some hundred
    leases, and every probe asks."""
    scripts = ScriptDirectory.from_config(_alembic())
    known = frozenset(script.revision for script in scripts.walk_revisions())
    return scripts.get_current_head(), known


def _alembic() -> Config:
    config = Config()
    # Alembic splits at "%"; a path may have one.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
