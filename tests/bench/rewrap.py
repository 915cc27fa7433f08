"""Rewrapping many real data keys, beside what the same Vault does alone; killed and resumed."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select

from kms_service.adapters.database import SqlDatabase, migrate, schema
from kms_service.adapters.database.engine import EngineOptions, transactions_of
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import Model, Project, WrappedDataKey
from kms_service.domain.names import ModelName, RewrapName, VersionName
from kms_service.usecases.rewrap_data_keys import new_rewrap
from tests.bench.measure import table
from tests.support import postgresql, vault_servers
from tests.support.data_keys import fill
from tests.support.vault_servers import VaultRig

_THREADS = 2
_KILLS = 10
_RAW_KEYS = 20_000
_OPENED = 1000
_MODEL = ModelName("demo", "bench")


def run(folder: Path, keys: int) -> str:
    """The table as Markdown."""
    rows: list[tuple[str, ...]] = []
    with vault_servers.running("openbao", folder / "vault") as vault, _databases(folder) as urls:
        for kind, url in urls.items():
            rows += _of_database(kind, url, vault, keys)
    return (
        "## Rewrap\n\n"
        f"{keys:,} versions with real wrapped data keys, one worker of {_THREADS} threads, and\n"
        f"OpenBao on the same machine. Raw: {_THREADS} threads have it rewrap {_RAW_KEYS:,} of\n"
        "the same keys, in batches of the size the adapter found, and store nothing; before and\n"
        f"after. Killed: SIGKILL {_KILLS} times on the way, started again each time, all starts\n"
        "and waits included (a dead worker's claim runs out after 20 s). Afterwards all are\n"
        f"counted by the rows' own wrapped keys, and every {keys // _OPENED or 1}th is unwrapped\n"
        "by Vault and compared.\n\n"
        + table(
            ("database", "run", "keys/s", "ratio to raw", "under the new version, opened"), rows
        )
    )


def _of_database(
    kind: str, url: str, vault: VaultRig, keys: int
) -> Iterator[tuple[str, str, str, str, str]]:
    master_key = vault.make_key(f"modelkms-bench-{kind}")
    migrate(url)
    database = SqlDatabase(url)
    try:
        with database.write() as tx:
            tx.projects.insert(Project(_MODEL.parent, master_key, datetime.now(UTC)))
            tx.models.insert(Model(_MODEL, datetime.now(UTC)))
        sample: list[tuple[WrappedDataKey, bytes]] = []
        made: dict[VersionName, bytes] = {}
        for version, data_key in fill(url, vault, master_key, _MODEL, keys):
            if version.name.number % (keys // _OPENED or 1) == 0:
                made[version.name] = data_key
            if len(sample) < _RAW_KEYS:
                context = data_key_context(_MODEL, version.uid)
                sample.append((version.wrapped_key, context))
        vault.root.secrets.transit.rotate_key(master_key)
        raw = [_raw_rate(vault, master_key, sample)]
        whole_s = _work(database, url, vault, master_key)
        found = [_found(database, url, vault, master_key, made)]
        raw.append(_raw_rate(vault, master_key, sample))
        vault.root.secrets.transit.rotate_key(master_key)
        killed_s = _work(database, url, vault, master_key, kills=_KILLS)
        found.append(_found(database, url, vault, master_key, made))
    finally:
        database.close()
    base = statistics.median(raw)
    yield kind, "raw batches", f"{base:,.0f}", "1.00", "-"
    for name, seconds, (moved, opened) in (
        ("rewrap", whole_s, found[0]),
        (f"rewrap, killed {_KILLS} times", killed_s, found[1]),
    ):
        rate = keys / seconds
        counted = f"{moved:,} of {keys:,}, {opened:,} of {len(made):,}"
        yield kind, name, f"{rate:,.0f}", f"{rate / base:.2f}", counted


def _work(
    database: SqlDatabase, url: str, vault: VaultRig, master_key: str, kills: int = 0
) -> float:
    """A rewrap to its end; seconds from when the first worker was ready."""
    latest = vault.root.secrets.transit.read_key(master_key)["data"]["latest_version"]
    started = database.rewraps.start(
        new_rewrap(_MODEL.parent, master_key, latest, "bench", datetime.now(UTC), 0)
    )
    began = 0.0
    for kill in range(1, kills + 1):
        with _worker(url, vault) as worker:
            began = began or time.perf_counter()
            wanted = started.total * kill // (kills + 1)
            while worker.poll() is None and _done(database, started.name) < wanted:
                time.sleep(0.02)
            worker.kill()
    with _worker(url, vault) as worker:
        began = began or time.perf_counter()
        if worker.wait() != 0:
            raise RuntimeError("the worker failed")
    return time.perf_counter() - began


def _worker(url: str, vault: VaultRig) -> subprocess.Popen[bytes]:
    """Ready to begin."""
    role = vault.roles.service
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.bench.rewrap_worker", url, str(_THREADS)),
            *(vault.server.address, str(vault.server.ca_file)),
            *(str(role.role_id_file), str(role.secret_id_file)),
        ],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    return worker


def _done(database: SqlDatabase, name: RewrapName) -> int:
    found = database.rewraps.get(name)
    return found.rewrapped if found is not None else 0


def _found(
    database: SqlDatabase,
    url: str,
    vault: VaultRig,
    master_key: str,
    made: Mapping[VersionName, bytes],
) -> tuple[int, int]:
    """How many rows hold a key that Vault wrapped under the newest version, and how many of `made`
    open to what they were made as."""
    latest = vault.root.secrets.transit.read_key(master_key)["data"]["latest_version"]
    rows, opened = schema.versions, 0
    query = select(func.count()).where(
        rows.c.wrapped_key.like(f"vault:v{latest}:%"), rows.c.master_key_version == latest
    )
    transactions = transactions_of(url, EngineOptions(connections=1, statement_timeout_s=600.0))
    try:
        with transactions.read() as connection:
            moved = int(connection.execute(query).scalar_one())
    finally:
        transactions.engine.dispose()
    with vault.master_keys(timeout_s=10.0) as master_keys:
        for name, data_key in made.items():
            with database.read() as tx:
                version = tx.versions.get(name)
            assert version is not None
            context = data_key_context(name.parent, version.uid)
            opened += (
                master_keys.unwrap(master_key, version.wrapped_key, context).reveal() == data_key
            )
    return moved, opened


def _raw_rate(vault: VaultRig, master_key: str, keys: list[tuple[WrappedDataKey, bytes]]) -> float:
    with vault.master_keys(timeout_s=10.0) as master_keys:
        master_keys.rewrap(master_key, keys[:5000])  # finds the size
        size = master_keys.rewrap_batch_size
        parts = [keys[first : first + size] for first in range(0, len(keys), size)]
        with ThreadPoolExecutor(_THREADS) as pool:
            seconds = _timed(
                lambda: list(pool.map(lambda part: master_keys.rewrap(master_key, part), parts))
            )
    return len(keys) / seconds


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def _databases(folder: Path) -> Iterator[dict[str, str]]:
    with postgresql.running() as server:
        yield {"sqlite": f"sqlite:///{folder}/rewrap.db", "postgresql": server.new_database()}
