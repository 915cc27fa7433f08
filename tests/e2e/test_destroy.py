"""A version's end on the running stack: two officers, undo, then nothing of its key anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pysqlite3 import dbapi2 as sqlite

from kms_service.adapters.audit_reading import read_records
from kms_service.development.stack import DevelopmentStack
from tests.support.cli import Cli
from tests.support.postgresql import PostgresServer, name_of

pytestmark = [
    pytest.mark.xdist_group("stack"),
    pytest.mark.faults,
    pytest.mark.timeout(600),  # some thirty commands, each a process of its own
]

As = Callable[[str], Cli]


@dataclass(frozen=True)
class Running:
    """A stack, and what lies below its service.

    Attributes:
        execute: a statement, past the service; its rows.
        data: folder of the database's own files. PostgreSQL's log of writes (`pg_wal`) is apart
            from it and out of reach: docs/guides/destroying-versions.md says what to do.
    """

    stack: DevelopmentStack
    execute: Callable[[str], list[Any]]
    data: Path

    def wrapped_key(self, model: str) -> bytes:
        ((key,),) = self.execute(f"SELECT wrapped_key FROM versions WHERE model = '{model}'")
        return str(key).encode()

    def let_it_be_due(self, model: str) -> None:
        """Thirty days pass: nothing but the database knows when it is due."""
        self.execute(
            "UPDATE versions SET destroy_due_us = 0, destroy_due_served_us = 0"
            f" WHERE model = '{model}'"
        )


@pytest.fixture(params=["sqlite", "postgresql"])
def running(
    request: pytest.FixtureRequest,
    stack: DevelopmentStack,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    if request.param == "sqlite":
        file = stack.paths.service / "modelkms.db"
        yield Running(stack, partial(_execute_sqlite, file), file.parent)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    folder = tmp_path_factory.mktemp("stack-on-postgresql")
    with DevelopmentStack(folder, database_url=url) as another:
        yield Running(another, partial(_execute_postgresql, server, url), server.data / "base")


def _execute_sqlite(file: Path, statement: str) -> list[Any]:
    with closing(sqlite.connect(str(file), timeout=10)) as opened:
        rows: list[Any] = opened.execute(statement).fetchall()
        opened.commit()
    return rows


def _execute_postgresql(server: PostgresServer, url: str, statement: str) -> list[Any]:
    with server.connect(name_of(url)) as connection:
        cursor = connection.execute(statement)
        rows: list[Any] = cursor.fetchall() if cursor.description else []
        connection.execute("CHECKPOINT")  # what it holds is in its files
    return rows


def _until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def _state(cli: As, ref: str) -> str:
    return str(cli("security").json("ls", ref.partition("@")[0])["versions"][0]["state"])


def test_destroy_needs_two_officers_and_can_be_undone(cli: As, file_model: Path) -> None:
    ref = "demo/end-undone@1"
    cli("publisher").ok("push", file_model, "demo/end-undone")
    told = cli("security").ok("destroy", ref, "--in", "30d").text
    assert f"modelkms admin destroy confirm {ref}" in told
    assert "still pointed to by @stable" in told
    refused = cli("security").run("admin", "destroy", "confirm", ref)
    assert (refused.code, "another officer" in refused.err) == (8, True)
    assert cli("reader").run("cat", ref).code == 8
    assert "confirmed" in cli("witness").ok("admin", "destroy", "confirm", ref).text
    assert "is disabled" in cli("security").ok("restore", ref).text
    cli("security").ok("enable", ref)
    assert cli("reader").ok("cat", ref).out == file_model.read_bytes()
    assert cli("security").run("destroy", ref, "--in", "23h").code == 2
    assert cli("witness").run("destroy", ref).code == 3


def test_f60_after_destroy_nothing_yields_the_key(
    running: Running, tmp_path: Path, file_model: Path
) -> None:
    """No query, cache, lease or backup put back, nor a search of the database's files."""
    stack, ref = running.stack, "demo/end@1"

    def cli(identity: str) -> Cli:
        return Cli(stack.paths.profile(identity), tmp_path)

    cli("publisher").ok("push", file_model, "demo/end")
    assert cli("reader").ok("cat", ref).out == file_model.read_bytes()
    wrapped, before = running.wrapped_key("end"), list(stack.paths.artifacts.rglob("objects/*/*"))
    assert _found(running.data, wrapped, running)
    cli("security").ok("destroy", ref, "--delete-artifact")
    cli("witness").ok("admin", "destroy", "confirm", ref)
    running.let_it_be_due("end")
    assert cli("security").run("restore", ref).code == 8
    stack.restart_service()  # sweeps at once, then every minute
    _until(lambda: _state(cli, ref) == "DESTROYED")

    for act in (("cat", ref), ("prefetch", ref), ("run", ref, "--", "true")):
        assert cli("reader").run(*act).code in (8, 125)
    for act in (("enable", ref), ("restore", ref), ("destroy", ref), ("promote", ref)):
        assert cli("security").run(*act).code in (3, 8)
    assert cli("security").json("lease", "list", "--model", ref)["leases"] == []
    _until(lambda: not _found(running.data, wrapped, running))
    assert not _found(stack.paths.root, wrapped, running)
    assert len(list(stack.paths.artifacts.rglob("objects/*/*"))) == len(before) - 1
    (record,) = (
        record
        for record in read_records(stack.paths.audit / "main")
        if record["event"] == "ShredVersion" and record["resource"].endswith("end/versions/1")
    )
    assert record["details"]["artifact"] == "deleted"
    assert record["details"]["confirmed_by"].endswith("/witness")

    # As a backup has it, put back: there is a tombstone.
    put_back = "UPDATE versions SET state = '{}', wrapped_key = '{}', master_key_version = {}"
    running.execute(put_back.format("ENABLED", wrapped.decode(), 1) + " WHERE model = 'end'")
    assert cli("reader").run("cat", ref).code == 8
    running.execute(put_back.format("DESTROYED", "", 0) + " WHERE model = 'end'")


def _found(folder: Path, wrapped: bytes, running: Running) -> list[str]:
    """Files below `folder` that hold the wrapped key, or the middle of it."""
    running.execute("SELECT 1")  # what is in memory is on its way to them
    middle = wrapped[len(wrapped) // 3 : 2 * len(wrapped) // 3]
    assert len(middle) > 20
    return [
        file.name for file in folder.rglob("*") if file.is_file() and middle in file.read_bytes()
    ]
