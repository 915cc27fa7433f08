"""Counts of data keys by master-key version: exact whoever writes, cheap to ask for; and rewraps
that touch no index. SQLite and PostgreSQL, real ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, select

import kms_service.adapters.database as database_package
from kms_service.adapters.database import SqlDatabase, migrate, schema
from kms_service.adapters.database.engine import EngineOptions, Transactions, transactions_of
from kms_service.adapters.database.key_counts import counts_of_project
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import StateConflict
from kms_service.domain.rewrapping import RewrapBatch, Rewrapped
from kms_service.usecases.rewrap_data_keys import new_rewrap
from tests.contract.conftest import Migrated
from tests.contract.rows import DEMO, FACE, NOW, version
from tests.support.postgresql import PostgresServer, name_of

pytestmark = pytest.mark.xdist_group("postgresql")

_KEYS = 40


@pytest.fixture
def transactions(migrated: Migrated, filled: SqlDatabase) -> Iterator[Transactions]:
    """Past the adapter, to the same database."""
    transactions = transactions_of(migrated.url, EngineOptions(connections=2))
    yield transactions
    transactions.engine.dispose()


def test_whoever_writes_whatever_they_are_exact(
    filled: SqlDatabase, transactions: Transactions
) -> None:
    statements = (
        "UPDATE versions SET master_key_version = 2 WHERE number > 10",
        "UPDATE versions SET master_key_version = 3, revision = 9 WHERE number > 25",
        "UPDATE versions SET state = 'DISABLED'",
        "UPDATE versions SET master_key_version = 0, wrapped_key = '' WHERE number = 12",
        "DELETE FROM versions WHERE number IN (3, 26)",
        "UPDATE versions SET master_key_version = 3",
        "DELETE FROM versions",
    )
    insert_keys(filled)
    assert_exact(transactions)
    for statement in statements:
        with transactions.write() as connection:
            connection.exec_driver_sql(statement)
        assert_exact(transactions)


def test_a_transaction_that_is_rolled_back_counts_nothing(
    filled: SqlDatabase, transactions: Transactions
) -> None:
    insert_keys(filled)

    def move_and_break_off() -> None:
        with transactions.write() as connection:
            connection.exec_driver_sql("UPDATE versions SET master_key_version = 7")
            assert counts_of_project(connection, DEMO) == {7: _KEYS}
            raise StateConflict

    with pytest.raises(StateConflict):
        move_and_break_off()
    assert_exact(transactions)


def test_adding_up_changes_no_count_and_leaves_few_rows(
    filled: SqlDatabase, transactions: Transactions
) -> None:
    for number in range(1, 11):  # a transaction each
        with filled.write() as tx:
            tx.versions.insert(version(number))
    filled.fold_key_counts()
    filled.fold_key_counts()
    assert_exact(transactions)
    with transactions.read() as connection:
        counts = schema.key_counts
        assert len(connection.execute(select(counts).where(counts.c.data_keys != 0)).all()) == 1


def test_old_versions_are_not_given_up_on_the_strength_of_counts_that_were_kept(
    filled: SqlDatabase, transactions: Transactions
) -> None:
    insert_keys(filled)
    with transactions.write() as connection:  # as after a restore that ran no triggers
        connection.execute(schema.key_counts.delete())
    with filled.read() as tx:
        assert tx.versions.count_by_master_key_version(DEMO) == {}
        assert tx.versions.count_under_master_key("modelkms-demo") == {1: _KEYS}
    assert filled.recount_keys()
    assert not filled.recount_keys()
    assert_exact(transactions)


def test_a_rewrap_touches_no_index(
    request: pytest.FixtureRequest, migrated: Migrated, filled: SqlDatabase
) -> None:
    """Of PostgreSQL's updates all that find room on their page are heap-only."""
    if migrated.url.startswith("sqlite"):
        return  # has no such thing
    before = updates(request, migrated.url)
    insert_keys(filled)
    database = SqlDatabase(migrated.url)  # whose sessions tell of their work when they end
    rewrap = database.rewraps.start(new_rewrap(DEMO, "modelkms-demo", 2, "officer", NOW, 0))
    batch = database.rewraps.claim(rewrap.name, _KEYS, NOW)
    assert isinstance(batch, RewrapBatch)
    moved = [Rewrapped(item, WrappedDataKey(f"vault:v2:{item.uid}", 2)) for item in batch.items]
    assert database.rewraps.settle(batch, moved, [], NOW, whole=True) == _KEYS
    database.close()
    end = time.monotonic() + 30
    while (after := updates(request, migrated.url))[0] < before[0] + _KEYS:
        assert time.monotonic() < end, after
        time.sleep(0.05)
    assert after[1] - before[1] >= _KEYS // 2


def test_what_was_there_before_is_counted_by_the_migration(
    request: pytest.FixtureRequest, tmp_path: Path, migrated: Migrated
) -> None:
    if migrated.url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/older.db"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database()
    transactions = transactions_of(url, EngineOptions(connections=2))
    try:
        with transactions.upgrade() as connection:
            upgrade(connection, "0010")
            connection.exec_driver_sql("INSERT INTO projects VALUES ('demo', 'k', 0)")
            connection.exec_driver_sql("INSERT INTO models VALUES ('demo', 'face', 0, '{}', 9)")
        database = SqlDatabase(url)
        insert_keys(database)  # as the release before does
        migrate(url)
        assert_exact(transactions)
        with database.write() as tx:
            tx.versions.insert(version(99))
        database.close()
        assert_exact(transactions)
    finally:
        transactions.engine.dispose()


def insert_keys(database: SqlDatabase) -> None:
    """Under version 1 of the master key, in one transaction."""
    with database.write() as tx:
        for number in range(1, _KEYS + 1):
            tx.versions.insert(version(number))


def assert_exact(transactions: Transactions) -> None:
    table = schema.versions
    with transactions.read() as connection:
        rows = connection.execute(
            select(table.c.master_key_version).where(
                table.c.project == FACE.project, table.c.master_key_version > 0
            )
        )
        assert counts_of_project(connection, DEMO) == dict(Counter(row[0] for row in rows))


def updates(request: pytest.FixtureRequest, url: str) -> tuple[int, int]:
    """Of versions: how many so far, and how many of them heap-only."""
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.connect(name_of(url)) as connection:
        row = connection.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'versions'"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    folder = Path(str(database_package.__file__)).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
