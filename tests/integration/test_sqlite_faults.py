"""F57: what disks, other processes and crashes do to SQLite, and what must then hold."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pysqlite3 import dbapi2 as sqlite

from kms_service.adapters.database import SqlDatabase, migrate, schema_state
from kms_service.domain.catalogue import Model, Project
from kms_service.domain.errors import ConfigurationError, StateCorrupt, StateUnavailable
from kms_service.domain.names import ModelName, ProjectName
from tests.contract.rows import NOW

DEMO = ProjectName("demo")
ROUNDS = 4

# Inserts models until it is killed, and tells each that was committed.
_WRITER = """
import sys
from kms_service.adapters.database import SqlDatabase
from kms_service.domain.catalogue import Model
from kms_service.domain.names import ModelName
from tests.contract.rows import NOW
database, number = SqlDatabase(sys.argv[1]), int(sys.argv[2])
while True:
    number += 1
    with database.write() as tx:
        tx.models.insert(Model(ModelName("demo", f"m{number}"), NOW))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A migrated database with the project demo."""
    file = tmp_path / "state.db"
    migrate(f"sqlite:///{file}")
    database = SqlDatabase(f"sqlite:///{file}")
    with database.write() as tx:
        tx.projects.insert(Project(DEMO, "modelkms-demo", NOW))
    database.close()
    return file


@pytest.fixture
def database(file: Path) -> Iterator[SqlDatabase]:
    database = SqlDatabase(f"sqlite:///{file}")
    yield database
    database.close()


def add(database: SqlDatabase, name: str) -> None:
    with database.write() as tx:
        tx.models.insert(Model(ModelName("demo", name), NOW))


def names(database: SqlDatabase) -> set[str]:
    with database.read() as tx:
        return {model.name.model for model in tx.models.list(DEMO, 100_000, "").items}


def test_f57_settings_that_durability_rests_on(database: SqlDatabase) -> None:
    with database.transactions.read() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2  # FULL
        assert pragma("secure_delete") == 1
        assert pragma("foreign_keys") == 1


@pytest.mark.parametrize("version", [(3, 7, 0), (3, 45, 1), (3, 51, 2)])
def test_f57_a_library_that_loses_transactions_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
) -> None:
    monkeypatch.setattr(sqlite, "sqlite_version_info", version)
    with pytest.raises(ConfigurationError, match="can lose committed transactions"):
        SqlDatabase(f"sqlite:///{file}")


def test_f57_a_lock_held_by_somebody_else_is_an_outage_and_heals(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms_service.adapters.database.sqlite._BUSY_TIMEOUT_S", 0.2)
    database = SqlDatabase(f"sqlite:///{file}")
    other = sqlite.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateUnavailable):
        add(database, "locked")
    assert names(database) == set()  # readers go on
    other.execute("ROLLBACK")
    other.close()
    add(database, "free")
    assert names(database) == {"free"}
    database.close()


def test_f57_a_writer_of_our_own_that_hangs_is_an_outage_for_the_next(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms_service.adapters.database.sqlite._BUSY_TIMEOUT_S", 0.2)
    database = SqlDatabase(f"sqlite:///{file}")
    hangs, ends = threading.Event(), threading.Event()

    def hang() -> None:
        with database.write():
            hangs.set()
            ends.wait(30)

    thread = threading.Thread(target=hang)
    thread.start()
    assert hangs.wait(30)
    with pytest.raises(StateUnavailable):
        add(database, "waiting")
    ends.set()
    thread.join()
    add(database, "free")
    database.close()


def test_f57_a_damaged_page_is_corruption_and_not_an_outage(file: Path) -> None:
    database = SqlDatabase(f"sqlite:///{file}")
    for number in range(200):
        add(database, f"m{number}")
    database.close()
    _checkpoint(file)
    content = bytearray(file.read_bytes())
    for offset in range(4096, len(content), 4096):  # each page but the first, its b-tree header
        content[offset : offset + 16] = bytes([0xFF]) * 16
    file.write_bytes(content)
    database = SqlDatabase(f"sqlite:///{file}")
    with pytest.raises(StateCorrupt):
        names(database)
    database.close()


@pytest.mark.parametrize("content", [b"not a database at all" * 500, b"\x00" * 8192])
def test_f57_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "state.db"
    file.write_bytes(content)
    with pytest.raises(StateCorrupt):
        schema_state(f"sqlite:///{file}")


def test_f57_no_space_is_an_outage_and_loses_nothing(file: Path, database: SqlDatabase) -> None:
    """EFBIG stands for ENOSPC: SQLite's write fails in the same place."""
    add(database, "before")
    wal = file.with_name(file.name + "-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 4096, hard))
    try:
        refused = set()
        for number in range(20):
            try:
                add(database, f"full{number}")
            except StateUnavailable:
                refused.add(f"full{number}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused
    committed = {"before"} | {f"full{number}" for number in range(20)} - refused
    assert names(database) == committed
    add(database, "after")
    assert names(database) == committed | {"after"}
    assert _sound(file)


@pytest.mark.faults
def test_f57_killed_while_committing_keeps_all_that_was_acknowledged(file: Path) -> None:
    url = f"sqlite:///{file}"
    last = 0
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, url, str(last)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(random.randint(5, 60))]
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        database = SqlDatabase(url)
        found = names(database)
        database.close()
        assert {f"m{number}" for number in acknowledged} <= found
        # At most the one whose acknowledgement did not come out: nothing half-made.
        last = max(int(name[1:]) for name in found)
        assert last <= acknowledged[-1] + 1
        assert found == {f"m{number}" for number in range(1, last + 1)}
        assert _sound(file)


def _sound(file: Path) -> bool:
    connection = sqlite.connect(file)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
    finally:
        connection.close()


def _checkpoint(file: Path) -> None:
    connection = sqlite.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
