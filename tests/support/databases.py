"""SQLite files for tests."""

from __future__ import annotations

from contextlib import closing

from pysqlite3 import dbapi2 as sqlite

from kms_service.adapters.database.schema import STORED


def empty_file(file: str) -> None:
    """Remove every row of our tables."""
    with closing(sqlite.connect(file)) as connection:
        for table in reversed(STORED):
            connection.execute(f"DELETE FROM {table.name}")
        connection.commit()
