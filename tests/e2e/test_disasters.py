"""The drills of docs/guides/disasters.md, on a running stack of their own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2 as sqlite

from kms_service.development.openbao import OpenBao
from kms_service.development.stack import DevelopmentStack
from tests.support.cli import MODELKMS_SERVER, Cli, clean_environment

pytestmark = [
    pytest.mark.xdist_group("disasters"),
    pytest.mark.faults,
    pytest.mark.timeout(600),
]

As = Callable[[str], Cli]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevelopmentStack]:
    with DevelopmentStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def cli(stack: DevelopmentStack, tmp_path: Path) -> As:
    return lambda identity: Cli(stack.paths.profile(identity), tmp_path)


def server(stack: DevelopmentStack, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODELKMS_SERVER, *map(str, words), "--config", str(stack.paths.config_file)],
        env=clean_environment(stack.paths.root),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def push(cli: As, model: str, content: bytes, folder: Path) -> None:
    file = folder / "model.onnx"
    file.write_bytes(content)
    cli("publisher").ok("push", file, model)


def _until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def forget_cached(stack: DevelopmentStack) -> None:
    shutil.rmtree(stack.paths.root / "cache", ignore_errors=True)


def test_f60_database_lost_and_an_old_backup_restored(
    stack: DevelopmentStack, cli: As, tmp_path: Path
) -> None:
    for name in ("kept", "ended", "closed"):
        push(cli, f"demo/{name}", name.encode(), tmp_path)
    file, database = tmp_path / "backup", stack.paths.service / "modelkms.db"
    made = server(stack, "backup", file)
    assert made.returncode == 0, made.stderr
    assert server(stack, "verify-state", "--keys").returncode == 0

    (kept_backup,) = cli("security").json("admin", "backup", "list")["backups"]
    assert kept_backup["location"].endswith(f":{file}")
    assert kept_backup["oldest_versions"] == {"modelkms-demo": 1}
    # After the backup: one more backup, one is disabled, one destroyed, one more is pushed.
    cli("security").ok("disable", "demo/closed@1")
    cli("security").ok("destroy", "demo/ended@1")
    cli("witness").ok("admin", "destroy", "confirm", "demo/ended@1")
    with closing(sqlite.connect(str(database), timeout=10)) as rows:
        rows.execute(
            "UPDATE versions SET destroy_due_us = 0, destroy_due_served_us = 0"
            " WHERE model = 'ended'"
        )
        (wrapped,) = rows.execute(
            "SELECT wrapped_key FROM versions WHERE model = 'ended'"
        ).fetchone()
        rows.commit()
    stack.restart_service()
    listed = ("ls", "demo/ended")
    _until(lambda: cli("security").json(*listed)["versions"][0]["state"] == "DESTROYED")

    assert server(stack, "backup", tmp_path / "later").returncode == 0
    assert server(stack, "backup", tmp_path / "later").returncode != 0  # is there already
    registered = cli("security").json("admin", "backup", "list")["backups"]
    assert [each["destroy_reason"] for each in registered] == ["was not written", "", ""]
    assert cli("reader").run("admin", "backup", "list").code == 3

    stack.service.stop()
    for part in ("", "-wal", "-shm"):
        database.with_name(database.name + part).unlink(missing_ok=True)
    restored = server(stack, "restore", file)
    assert restored.returncode == 6, restored.stderr
    assert "ended/versions/1" in restored.stderr
    assert "destroyed again" in restored.stderr
    assert "closed/versions/1" in restored.stderr
    assert "kept/versions/1" not in restored.stderr
    again = server(stack, "verify-state", "--keys")
    assert again.returncode == 0, again.stderr

    stack.restart_service()
    # Nothing is lost of the registry; what is not in the restored one counts as not destroyed.
    known = cli("security").json("admin", "backup", "list")["backups"]
    assert [(each["id"], each["complete"]) for each in known] == [
        (each["id"], each["complete"]) for each in registered
    ]
    assert known[-1] == kept_backup
    assert cli("reader").ok("cat", "demo/kept").out == b"kept"
    for name in ("ended", "closed"):
        assert cli("reader").run("cat", f"demo/{name}@1").code == 8
    cli("security").ok("enable", "demo/closed@1")
    assert cli("reader").ok("cat", "demo/closed@1").out == b"closed"
    raw = b"".join(path.read_bytes() for path in database.parent.glob("modelkms.db*"))
    assert wrapped.encode() not in raw
    # A number given twice is another version: another uid, another key.
    push(cli, "demo/kept", b"later", tmp_path)
    assert cli("reader").ok("cat", "demo/kept@2").out == b"later"
    assert server(stack, "verify-state", "--keys").returncode == 0


def test_f56_an_old_row_put_back_is_found_on_the_running_stack(
    stack: DevelopmentStack, cli: As, tmp_path: Path
) -> None:
    push(cli, "demo/row", b"row", tmp_path)
    cli("security").ok("disable", "demo/row@1")
    with closing(sqlite.connect(str(stack.paths.service / "modelkms.db"), timeout=10)) as rows:
        rows.execute("UPDATE versions SET state = 'ENABLED' WHERE model = 'row'")
        rows.commit()
    told = server(stack, "verify-state", "--report-only")
    assert told.returncode == 6
    assert "row/versions/1" in told.stderr
    assert server(stack, "verify-state").returncode == 6
    assert cli("reader").run("cat", "demo/row@1").code == 8
    assert server(stack, "verify-state").returncode == 0


def test_bucket_lost(stack: DevelopmentStack, cli: As, tmp_path: Path) -> None:
    push(cli, "demo/stored", b"stored", tmp_path)
    objects = stack.paths.artifacts / "objects"
    copy = tmp_path / "replica"
    shutil.copytree(objects, copy)
    shutil.rmtree(objects)
    objects.mkdir()
    forget_cached(stack)
    refused = cli("reader").run("cat", "demo/stored")
    assert refused.code == 6, refused.err
    shutil.copytree(copy, objects, dirs_exist_ok=True)
    assert cli("reader").ok("cat", "demo/stored").out == b"stored"


def test_vault_lost(stack: DevelopmentStack, cli: As, tmp_path: Path) -> None:
    push(cli, "demo/vault", b"vault", tmp_path)
    vault = stack.vault
    assert isinstance(vault, OpenBao)
    vault.stop()
    folder = stack.paths.root / "vault"
    snapshot = tmp_path / "snapshot"
    shutil.copytree(folder / "raft", snapshot)
    shutil.rmtree(folder / "raft")
    forget_cached(stack)
    stack.service.stop()  # no key in memory either
    stack.restart_service()
    refused = cli("reader").run("cat", "demo/vault")
    assert refused.code == 5, refused.err
    assert server(stack, "verify-state", "--keys").returncode == 5
    shutil.copytree(snapshot, folder / "raft")
    vault.start_again()
    _until(lambda: cli("reader").run("cat", "demo/vault").code == 0)
    assert server(stack, "verify-state", "--keys").returncode == 0


def test_a_projects_master_key_lost(stack: DevelopmentStack, cli: As, tmp_path: Path) -> None:
    """Somebody restored a Vault older than the project; then the newest one is put back."""
    vault, raft = stack.vault, stack.paths.root / "vault" / "raft"
    assert isinstance(vault, OpenBao)
    push(cli, "demo/other", b"other", tmp_path)
    vault.stop()
    shutil.copytree(raft, tmp_path / "older")
    vault.start_again()
    _until(lambda: cli("security").run("admin", "master-key", "create", "lost").code == 0)
    cli("security").ok("admin", "project", "create", "lost")
    _until(lambda: _pushed(cli, "lost/model", tmp_path))

    vault.stop()
    shutil.move(raft, tmp_path / "newest")
    shutil.copytree(tmp_path / "older", raft)
    vault.start_again()
    forget_cached(stack)
    stack.service.stop()  # no key in memory either
    stack.restart_service()
    _until(lambda: cli("reader").run("cat", "demo/other").code == 0)  # other projects go on
    refused = cli("reader").run("cat", "lost/model", "--json")
    assert refused.code == 8, refused.err
    assert '"MASTER_KEY_MISCONFIGURED"' in refused.err
    assert not _pushed(cli, "lost/model", tmp_path)
    told = server(stack, "verify-state", "--keys")
    assert told.returncode == 6
    found = [line for line in told.stderr.splitlines() if line.startswith("found")]
    assert found, told.stderr
    for line in found:  # of the other projects' keys none
        assert "projects/lost/" in line, told.stderr
        assert line.endswith("its wrapped key gives none: MASTER_KEY_MISCONFIGURED")

    vault.stop()
    shutil.rmtree(raft)
    shutil.copytree(tmp_path / "newest", raft)
    vault.start_again()
    _until(lambda: cli("reader").run("cat", "lost/model").code == 0)
    assert cli("reader").ok("cat", "lost/model").out == b"content"
    again = server(stack, "verify-state", "--keys")
    assert again.returncode == 0, again.stderr


def _pushed(cli: As, model: str, folder: Path) -> bool:
    file = folder / "model.onnx"
    file.write_bytes(b"content")
    return cli("publisher").run("push", file, model).code == 0
