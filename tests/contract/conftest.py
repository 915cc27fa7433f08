"""A database of each kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kms_service.adapters.database import SqlDatabase, migrate
from kms_service.domain.catalogue import Model, Project
from tests.contract.rows import DEMO, FACE, NOW
from tests.support.databases import empty_file
from tests.support.postgresql import PostgresServer


@dataclass(frozen=True)
class Migrated:
    """A database, what empties it, and what reads the bytes of its data files."""

    database: SqlDatabase
    empty: Callable[[], object]
    raw: Callable[[], bytes]
    url: str


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def migrated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Migrated]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/state.db"
        file = Path(url.removeprefix("sqlite:///"))
        empty = functools.partial(empty_file, str(file))
        raw = functools.partial(_bytes_below, file.parent)
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.new_database()
        empty = functools.partial(postgres.empty, url)
        raw = functools.partial(_flushed_bytes, postgres)
    migrate(url)
    database = SqlDatabase(url)
    yield Migrated(database, empty, raw, url)
    database.close()


@pytest.fixture
def database(migrated: Migrated) -> SqlDatabase:
    """Migrated and empty."""
    migrated.empty()
    return migrated.database


@pytest.fixture
def filled(database: SqlDatabase) -> SqlDatabase:
    """With the project demo and its model face."""
    with database.write() as tx:
        tx.projects.insert(Project(DEMO, "modelkms-demo", NOW))
        tx.models.insert(Model(FACE, NOW, {"tier": "gold", "ä": "ü"}))
    return database


def _bytes_below(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def _flushed_bytes(postgres: PostgresServer) -> bytes:
    with postgres.connect() as connection:
        connection.execute("CHECKPOINT")
    return _bytes_below(postgres.data / "base")
