"""A version's end on the running stack: two officers, undo, then nothing of its key anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pysqlite3 import dbapi2 as sqlite

from kms_service.adapters.audit_reading import read_records
from kms_service.development.stack import DevelopmentStack
from tests.support.cli import Cli

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.faults]

As = Callable[[str], Cli]


@contextmanager
def _database(stack: DevelopmentStack) -> Iterator[Any]:
    with closing(sqlite.connect(str(stack.paths.service / "modelkms.db"), timeout=10)) as opened:
        yield opened


def _wrapped_key(stack: DevelopmentStack, model: str) -> bytes:
    with _database(stack) as database:
        (key,) = database.execute(
            "SELECT wrapped_key FROM versions WHERE model = ?", (model,)
        ).fetchone()
    return str(key).encode()


def _let_it_be_due(stack: DevelopmentStack, model: str) -> None:
    """Thirty days pass: nothing but the database knows when it is due."""
    with _database(stack) as database:
        database.execute(
            "UPDATE versions SET destroy_due_us = 0, destroy_due_served_us = 0 WHERE model = ?",
            (model,),
        )
        database.commit()


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
    cli: As, stack: DevelopmentStack, file_model: Path
) -> None:
    ref = "demo/end@1"
    cli("publisher").ok("push", file_model, "demo/end")
    assert cli("reader").ok("cat", ref).out == file_model.read_bytes()
    wrapped, before = _wrapped_key(stack, "end"), list(stack.paths.artifacts.rglob("objects/*/*"))
    cli("security").ok("destroy", ref, "--delete-artifact")
    cli("witness").ok("admin", "destroy", "confirm", ref)
    _let_it_be_due(stack, "end")
    assert cli("security").run("restore", ref).code == 8
    stack.restart_service()  # sweeps at once, then every minute
    _until(lambda: _state(cli, ref) == "DESTROYED")

    for act in (("cat", ref), ("prefetch", ref), ("run", ref, "--", "true")):
        assert cli("reader").run(*act).code in (8, 125)
    for act in (("enable", ref), ("restore", ref), ("destroy", ref), ("promote", ref)):
        assert cli("security").run(*act).code in (3, 8)
    assert cli("security").json("lease", "list", "--model", ref)["leases"] == []
    _until(lambda: not _found(stack.paths.service, wrapped))
    assert len(list(stack.paths.artifacts.rglob("objects/*/*"))) == len(before) - 1
    (record,) = (
        record
        for record in read_records(stack.paths.audit / "main")
        if record["event"] == "ShredVersion" and record["resource"].endswith("end/versions/1")
    )
    assert record["details"]["artifact"] == "deleted"
    assert record["details"]["confirmed_by"].endswith("/witness")


def _found(folder: Path, wrapped: bytes) -> list[str]:
    """Files below `folder` that hold the wrapped key, or the middle of it."""
    middle = wrapped[len(wrapped) // 3 : 2 * len(wrapped) // 3]
    assert len(middle) > 20
    return [
        file.name for file in folder.rglob("*") if file.is_file() and middle in file.read_bytes()
    ]
