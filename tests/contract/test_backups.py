"""Backups out of either database, into either."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kms_service.adapters.database import EngineOptions, SqlDatabase, migrate
from kms_service.adapters.database.dump import read_backup, write_backup
from kms_service.domain.catalogue import Alias, Model, VersionState
from kms_service.domain.errors import ConfigurationError
from kms_service.domain.names import AliasName
from tests.contract.conftest import Migrated
from tests.contract.rows import DEMO, FACE, NOW, version

pytestmark = pytest.mark.xdist_group("postgresql")


def test_a_backup_is_everything_of_one_moment(
    filled: SqlDatabase, migrated: Migrated, tmp_path: Path
) -> None:
    """Out of this database and back; and out of it into a new SQLite file."""
    versions = [version(1), version(2, state=VersionState.DESTROYED)]
    with filled.write() as tx:
        for each in versions:
            tx.versions.insert(each)
        tx.aliases.put(Alias(AliasName("demo", "face", "stable"), 1, NOW))
    filled.store_clock_mark(NOW)
    file = tmp_path / "backup"
    rows, oldest = write_backup(migrated.url, EngineOptions(), file, NOW)
    assert rows == 6
    assert oldest == {"modelkms-demo": 1}
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="is there already"):
        write_backup(migrated.url, EngineOptions(), file, NOW)
    with pytest.raises(ConfigurationError, match="has projects already"):
        read_backup(migrated.url, EngineOptions(), file)

    migrated.empty()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    migrate(other)
    for url in (migrated.url, other):
        assert read_backup(url, EngineOptions(), file) == rows
        with closing(SqlDatabase(url)) as database, database.read() as tx:
            assert [tx.versions.get(each.name) for each in versions] == versions
            assert tx.aliases.of_versions(FACE) == {1: ("stable",)}
            assert tx.models.get(FACE) == Model(FACE, NOW, {"tier": "gold", "ä": "ü"})
            assert list(tx.versions.scan(None, 1)) == versions[:1]
            assert list(tx.versions.scan(versions[0].name, 9)) == versions[1:]


def test_writers_go_on_and_are_not_in_it(
    filled: SqlDatabase, migrated: Migrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kms_service.adapters.database import dump

    with filled.write() as tx:
        tx.versions.insert(version(1))
    began: list[bool] = []
    write = dump._write

    def meanwhile(*arguments: object) -> None:
        if not began:
            began.append(True)
            with filled.write() as tx:
                tx.versions.insert(version(2))
                tx.versions.update(replace(version(1), state=VersionState.ENABLED, revision=1))
        write(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(dump, "_write", meanwhile)
    file = tmp_path / "backup"
    write_backup(migrated.url, EngineOptions(), file, NOW)
    migrated.empty()
    read_backup(migrated.url, EngineOptions(), file)
    with filled.read() as tx:
        assert list(tx.versions.scan(None, 9)) == [version(1)]


@pytest.mark.parametrize("damage", ["cut", "line gone", "bit", "empty", "no backup"])
def test_a_backup_that_is_not_whole_is_refused_whole(
    filled: SqlDatabase, migrated: Migrated, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "backup"
    write_backup(migrated.url, EngineOptions(), file, NOW)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(
        {
            "cut": b"".join(lines[:-1]),
            "line gone": b"".join(lines[:1] + lines[2:]),
            "bit": b"".join(lines).replace(b"modelkms-demo", b"modelkms-demp"),
            "empty": b"",
            "no backup": b"{}\n",
        }[damage]
    )
    migrated.empty()
    with pytest.raises(ConfigurationError, match="no whole backup"):
        read_backup(migrated.url, EngineOptions(), file)
    with filled.read() as tx:
        assert tx.projects.get(DEMO) is None
