"""The real adapters under the use cases."""

from __future__ import annotations

import shutil
from pathlib import Path

from kms_service.adapters.database.migrate import migrate
from kms_service.adapters.database.sql_database import SqlDatabase
from kms_service.adapters.object_storage import LocalArtifactStore


def migrated_database(folder: Path) -> Path:
    """A database file of the current schema, to be copied."""
    file = folder / "template.db"
    migrate(f"sqlite:///{file}")
    return file


def open_database(folder: Path, template: Path) -> SqlDatabase:
    """A database of its own; migrating each anew would cost more than the tests."""
    file = folder / "state.db"
    shutil.copyfile(template, file)
    return SqlDatabase(f"sqlite:///{file}")


def open_store(folder: Path) -> LocalArtifactStore:
    return LocalArtifactStore(folder / "artifacts")
