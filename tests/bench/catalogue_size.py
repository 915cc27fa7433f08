"""What a large catalogue costs: the database's part of lease, list and inventory."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kms_service.adapters.database import SqlDatabase, migrate
from kms_service.adapters.database.engine import EngineOptions, transactions_of
from kms_service.adapters.database.pages import encode_token
from kms_service.domain.catalogue import Model, Project
from kms_service.domain.leases import Lease
from kms_service.domain.names import LeaseName, ModelName, VersionName
from kms_service.domain.ports import Transaction
from tests.bench.measure import table
from tests.support import postgresql

_MODEL = ModelName("demo", "bench")
_NOW = datetime.now(UTC)
_SMALL = 1000
_ROUNDS = 200

_NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
    " WHERE n < {count})",
    "postgresql": "WITH numbers AS (SELECT generate_series(1, {count}) AS n)",
}
_HEX = {"sqlite": "printf('%032x', n)", "postgresql": "lpad(to_hex(n), 32, '0')"}
_FILL = """
INSERT INTO versions (project, model, number, uid, state, publisher, request_id, artifact_id,
    wrapped_key, master_key_version, create_time_us, finalize_time_us, pin_length_bytes,
    pin_floe_header_tag, pin_digest, revision)
{numbers} SELECT 'demo', 'bench', n, {hex}, 'ENABLED', 'spiffe://test.example/p', {hex}, {hex},
    'vault:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' || {hex}, 1 + n % 3,
    1000000, 1000000, 1000, {pin}, {pin}, 1 FROM numbers
"""
_PIN = {"sqlite": "zeroblob(32)", "postgresql": "decode(repeat('00', 32), 'hex')"}


def run(folder: Path, versions: int) -> str:
    """The table as Markdown."""
    rows = []
    with postgresql.running() as server:
        for kind in ("sqlite", "postgresql"):
            costs = {}
            for count in (_SMALL, versions):
                url = f"sqlite:///{folder}/catalogue-{count}.db"
                costs[count] = _costs(
                    kind, server.new_database() if kind == "postgresql" else url, count
                )
            rows += [
                (
                    kind,
                    name,
                    f"{costs[_SMALL][name]:.2f}",
                    f"{costs[versions][name]:.2f}",
                    f"{costs[versions][name] / costs[_SMALL][name]:.2f}",
                )
                for name in costs[_SMALL]
            ]
    return (
        "## Size of the catalogue\n\n"
        f"The database's part of a call, in one thread, median of {_ROUNDS} (inventory: 5), in\n"
        f"milliseconds: {_SMALL:,} versions of one model against {versions:,}. A lease reads the\n"
        "version and commits a lease row, durably.\n\n"
        + table(("database", "call", f"{_SMALL:,}", f"{versions:,}", "ratio"), rows)
    )


def _costs(kind: str, url: str, count: int) -> dict[str, float]:
    migrate(url)
    database = SqlDatabase(url, EngineOptions(statement_timeout_s=60.0))
    try:
        with database.write() as tx:
            tx.projects.insert(Project(_MODEL.parent, "modelkms-demo", _NOW))
            tx.models.insert(Model(_MODEL, _NOW))
        fill(kind, url, count)
        return _measured(database, count)
    finally:
        database.close()


def _measured(database: SqlDatabase, count: int) -> dict[str, float]:
    def some() -> VersionName:
        return VersionName("demo", "bench", 1 + secrets.randbelow(count))

    def lease() -> None:
        def work(tx: Transaction) -> None:
            version = tx.versions.get(some())
            assert version is not None
            name = LeaseName("demo", secrets.token_hex(16))
            hour = timedelta(hours=1)
            tx.leases.insert(
                Lease(
                    name=name,
                    version=version.name,
                    version_uid=version.uid,
                    principal="spiffe://test.example/reader",
                    instance="ab" * 32,
                    issue_time=_NOW,
                    expire_time=_NOW + hour,
                    absolute_end_time=_NOW + hour,
                )
            )

        database.transact(work)

    def page(token: Callable[[], str]) -> None:
        with database.read() as tx:
            assert tx.versions.list(_MODEL, 100, token()).items

    def inventory() -> None:
        with database.read() as tx:
            assert sum(tx.versions.count_by_master_key_version(_MODEL.parent).values()) == count

    return {
        "lease": _median_ms(lease, _ROUNDS),
        "list, first 100": _median_ms(lambda: page(lambda: ""), _ROUNDS),
        "list, 100 in the midst": _median_ms(
            lambda: page(lambda: encode_token(some().number + 1)), _ROUNDS
        ),
        "inventory": _median_ms(inventory, 5),
    }


def _median_ms(work: Callable[[], None], rounds: int) -> float:
    work()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1000


def fill(kind: str, url: str, count: int) -> None:
    transactions = transactions_of(url, EngineOptions(connections=1, statement_timeout_s=600.0))
    statement = _FILL.format(
        numbers=_NUMBERS[kind].format(count=count), hex=_HEX[kind], pin=_PIN[kind]
    )
    if kind == "sqlite":  # its WITH stands before INSERT
        head, _, tail = statement.partition("WITH RECURSIVE")
        numbers, _, select = tail.partition(" SELECT 'demo'")
        statement = f"WITH RECURSIVE{numbers} {head} SELECT 'demo'{select}"
    with transactions.write() as connection:
        connection.exec_driver_sql(statement.replace("%", "%%") if kind != "sqlite" else statement)
    if kind == "postgresql":  # as autovacuum does soon
        with transactions.engine.connect() as plain:
            plain.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(
                "VACUUM ANALYZE versions"
            )
    transactions.close()
