"""What an installation must be sized for: a core's leases, memory and disk by what they grow with.

Bytes and CPU time hold on any machine and beside other load; leases a second are of this one.
"""

from __future__ import annotations

import re
import secrets
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pysqlite3.dbapi2 as sqlite
from prometheus_client.parser import text_string_to_metric_families

from kms_service.adapters.database import SqlDatabase, migrate
from kms_service.development.stack import DevelopmentStack
from kms_service.domain.catalogue import Model, Project
from kms_service.domain.leases import Lease
from kms_service.domain.names import LeaseName, ModelName, VersionName
from kms_service.domain.ports import Transaction
from tests.bench import catalogue_size, fleet
from tests.bench.leases import SERVER_CORE, lease_request, load, pin, publish_small_model
from tests.bench.measure import table
from tests.support import postgresql
from tests.support.postgresql import name_of
from tests.support.tools import REPOSITORY, go_tool
from tests.support.watch_load import many_watchers

GUIDE = REPOSITORY / "docs" / "guides" / "operations.md"
_IN_GUIDE = re.compile(r"(?<=<!-- sizing -->\n).*?(?=<!-- /sizing -->\n)", re.DOTALL)
_CONCURRENCY = 64
_CLIENTS = 400
_ROWS = 50_000
_MODEL = ModelName("demo", "bench")

Rows = list[tuple[str, str]]


def run(folder: Path, seconds: float) -> str:
    """The table as Markdown."""
    folder.mkdir()
    rows = [*_of_a_process(folder, seconds), *_of_a_database(folder)]
    return (
        "## Sizing\n\n"
        f"One process on one core, {_CONCURRENCY} requests at once, caches warm;\n"
        f"{_CLIENTS:,} clients with a TLS key of their own; {_ROWS:,} rows a table, indexes\n"
        "included.\n\n" + table(("of", "measured"), rows)
    )


def write_guide(section: str) -> None:
    """Put the section's table into the operator's guide."""
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    GUIDE.write_text(_IN_GUIDE.sub(lambda _: f"{rows}\n", GUIDE.read_text()))


def _of_a_process(folder: Path, seconds: float) -> Rows:
    ghz = go_tool("ghz")
    with DevelopmentStack(folder / "stack") as stack:
        publish_small_model(stack, folder)
        pin(stack.service.pid, SERVER_CORE)
        request = folder / "request"
        request.write_bytes(lease_request().SerializeToString())
        load(ghz, stack, stack.grpc_port, request, 1.0)  # caches, sessions
        before, log_before = _scrape(stack), _audit_bytes(stack)
        told = load(ghz, stack, stack.grpc_port, request, seconds, concurrency=_CONCURRENCY)
        after, log_after = _scrape(stack), _audit_bytes(stack)
        leases = _grown(before, after, "modelkms_leases_issued_total")
        cpu_s = _grown(before, after, "process_cpu_seconds_total")
        return [
            ("leases a second, one core", f"{told['rate']:,.0f}"),
            ("CPU time of a lease", f"{cpu_s / leases * 1e6:,.0f} µs"),
            ("memory of a process, idle", _mib(before[_RESIDENT])),
            (f"memory, {_CONCURRENCY} requests at once", _mib(after[_RESIDENT])),
            *_of_clients(stack, folder),
            ("audit log, a lease", f"{(log_after - log_before) / leases:,.0f} B"),
        ]


def _of_clients(stack: DevelopmentStack, folder: Path) -> Rows:
    """Memory that stays for each client that was there, and for each that watches."""
    folders = fleet.identities(stack, folder / "clients", _CLIENTS)
    fleet.cold_start(stack, folders[: _CLIENTS // 4])  # threads, arenas
    before = _scrape(stack)[_RESIDENT]
    leased = fleet.cold_start(stack, folders)
    clients = _scrape(stack)[_RESIDENT]
    holders: list[dict[str, object]] = [
        {"folder": each, "leases": [lease["lease"]]}
        for each, lease in zip(folders, leased, strict=True)
    ]
    with many_watchers(stack.watch_port, holders) as said:
        if said.readline() != "ready\n":
            raise RuntimeError("the watchers did not all begin")
        watching = _scrape(stack)[_RESIDENT]
    return [
        ("memory, a client", _kib((clients - before) / (_CLIENTS * 3 / 4))),
        ("memory, a watching client", _kib((watching - clients) / _CLIENTS)),
    ]


def _of_a_database(folder: Path) -> Rows:
    file = folder / "rows.db"
    found = {"SQLite": _row_bytes("sqlite", f"sqlite:///{file}", lambda: _sqlite_bytes(file))}
    with postgresql.running() as server:
        url = server.new_database()

        def used() -> int:
            with server.connect(name_of(url)) as connection:
                row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
                assert row is not None
                return int(row[0])

        found["PostgreSQL"] = _row_bytes("postgresql", url, used)
    return [
        (f"database, a {what} ({product})", f"{found[product][what]:,.0f} B")
        for what in ("version", "lease")
        for product in found
    ]


def _row_bytes(kind: str, url: str, used: Callable[[], int]) -> dict[str, float]:
    migrate(url)
    database = SqlDatabase(url)
    try:
        with database.write() as tx:
            tx.projects.insert(Project(_MODEL.parent, "modelkms-demo", datetime.now(UTC)))
            tx.models.insert(Model(_MODEL, datetime.now(UTC)))
        empty = used()
        catalogue_size.fill(kind, url, _ROWS)
        versions = used()
        for _ in range(_ROWS // 1000):
            database.transact(_a_thousand_leases)
        leases = used()
    finally:
        database.close()
    return {"version": (versions - empty) / _ROWS, "lease": (leases - versions) / _ROWS}


def _a_thousand_leases(tx: Transaction) -> None:
    now = datetime.now(UTC)
    for _ in range(1000):
        tx.leases.insert(
            Lease(
                name=LeaseName("demo", secrets.token_hex(16)),
                version=VersionName("demo", "bench", 1 + secrets.randbelow(_ROWS)),
                version_uid=secrets.token_hex(16),
                principal="spiffe://example.org/production/reader",
                instance=secrets.token_hex(32),
                issue_time=now,
                expire_time=now + timedelta(hours=1),
                absolute_end_time=now + timedelta(hours=12),
            )
        )


def _sqlite_bytes(file: Path) -> int:
    """Whatever its log has is moved into the file first."""
    connection = sqlite.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return file.stat().st_size


_RESIDENT = "process_resident_memory_bytes"


def _scrape(stack: DevelopmentStack) -> dict[str, float]:
    """Samples without labels, by name."""
    url = f"http://127.0.0.1:{stack.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def _grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before.get(name, 0.0)


def _audit_bytes(stack: DevelopmentStack) -> int:
    return sum(path.stat().st_size for path in stack.paths.audit.rglob("*") if path.is_file())


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


def _kib(value: float) -> str:
    return f"{max(0.0, value) / 1024:,.0f} KiB"
