"""Who shares a transaction shares what was looked up in it, and never sees a row as it was."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from kms_service.adapters.database.sql_database import SqlDatabase, SqlTransaction
from kms_service.domain.catalogue import Project
from kms_service.domain.leases import Lease
from kms_service.domain.names import LeaseName, ProjectName, VersionName
from kms_service.domain.standing import Block, Freeze
from tests.unit.usecases.real_parts import migrated_database

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PRINCIPAL = "spiffe://example.org/reader"
BLOCK = Block(PRINCIPAL, "stolen", "spiffe://example.org/officer", NOW, None)
PROJECT = ProjectName("demo")
FREEZE = Freeze(PROJECT, "audit", "spiffe://example.org/officer", NOW)
TIMEOUT_S = 30


class Rig:
    def __init__(self, database: SqlDatabase) -> None:
        self.database = database
        self.statements: list[str] = []
        event.listen(
            database.transactions.engine,
            "checkout",
            lambda driver, *_rest: driver.set_trace_callback(self.statements.append),
        )

    def of(self, table: str) -> int:
        return sum(f"FROM {table}" in statement for statement in self.statements)

    def together(self, *works: Callable[[], object]) -> list[Future[object]]:
        """Run them so that they share one transaction."""
        transactions = self.database.transactions
        entered, release = threading.Event(), threading.Event()

        def hold(_tx: SqlTransaction) -> None:
            entered.set()
            assert release.wait(TIMEOUT_S)

        with ThreadPoolExecutor(len(works) + 2) as pool:
            for run in (self.database.look, self.database.transact):
                entered.clear()
                pool.submit(run, hold)
                assert entered.wait(TIMEOUT_S)
            asked = []
            for work in works:
                asked.append(pool.submit(work))
                while sum(map(len, queues(transactions))) < len(asked):
                    time.sleep(0.001)
            self.statements.clear()
            release.set()
        return asked


def queues(transactions: object) -> list[list[object]]:
    return [getattr(transactions, name)._queue for name in ("_group", "_looks")]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    database = SqlDatabase(f"sqlite:///{migrated_database(tmp_path)}")
    rig = Rig(database)
    database.transact(lambda tx: tx.projects.insert(Project(PROJECT, "key", NOW)))
    yield rig
    database.close()


def lease() -> Lease:
    return Lease(
        name=LeaseName("demo", secrets.token_hex(16)),
        version=VersionName("demo", "onnx", 1),
        version_uid="1" * 32,
        principal=PRINCIPAL,
        instance="i",
        issue_time=NOW,
        expire_time=NOW + timedelta(hours=1),
        absolute_end_time=NOW + timedelta(hours=12),
    )


def test_looks_that_wait_share_one_snapshot_and_one_statement(rig: Rig) -> None:
    asked = rig.together(
        *[lambda: rig.database.look(lambda tx: tx.projects.get(PROJECT)) for _ in range(20)]
    )
    assert [each.result() for each in asked] == [Project(PROJECT, "key", NOW)] * 20
    assert rig.of("projects") == 1


def test_one_look_that_fails_fails_alone(rig: Rig) -> None:
    def fail(_tx: SqlTransaction) -> None:
        raise KeyError("mine")

    failed, found = rig.together(
        lambda: rig.database.look(fail),
        lambda: rig.database.look(lambda tx: tx.projects.get(PROJECT)),
    )
    assert isinstance(failed.exception(), KeyError)
    assert found.result() is not None


def test_leases_committed_together_look_once(rig: Rig) -> None:
    def issue(tx: SqlTransaction) -> Block | None:
        block = tx.blocks.get(PRINCIPAL)
        tx.leases.insert(lease())
        return block

    asked = rig.together(*[lambda: rig.database.transact(issue) for _ in range(20)])
    assert [each.result() for each in asked] == [None] * 20
    assert rig.of("blocks") == 1
    assert rig.database.look(lambda tx: tx.leases.count_live(NOW)) == 20


def test_a_block_holds_for_the_next_in_the_same_transaction(rig: Rig) -> None:
    before, _, after = rig.together(
        lambda: rig.database.transact(lambda tx: tx.blocks.get(PRINCIPAL)),
        lambda: rig.database.transact(lambda tx: tx.blocks.put(BLOCK)),
        lambda: rig.database.transact(lambda tx: tx.blocks.get(PRINCIPAL)),
    )
    assert before.result() is None
    assert after.result() == BLOCK


def test_what_was_taken_back_is_not_seen(rig: Rig) -> None:
    def freeze_and_fail(tx: SqlTransaction) -> None:
        tx.freezes.put(FREEZE)
        assert tx.freezes.get(PROJECT) == FREEZE
        raise KeyError("taken back")

    failed, after = rig.together(
        lambda: rig.database.transact(freeze_and_fail),
        lambda: rig.database.transact(lambda tx: tx.freezes.get(PROJECT)),
    )
    assert isinstance(failed.exception(), KeyError)
    assert after.result() is None


def test_nothing_outlives_its_transaction(rig: Rig) -> None:
    """Another process blocks: a connection of its own to the same file."""
    assert rig.database.look(lambda tx: tx.blocks.get(PRINCIPAL)) is None
    other = SqlDatabase(str(rig.database.transactions.engine.url))
    other.transact(lambda tx: tx.blocks.put(BLOCK))
    other.close()
    assert rig.database.look(lambda tx: tx.blocks.get(PRINCIPAL)) == BLOCK
    assert rig.database.transact(lambda tx: tx.blocks.get(PRINCIPAL)) == BLOCK
