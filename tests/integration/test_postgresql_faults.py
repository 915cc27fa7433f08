"""What PostgreSQL does to us, and what must then hold (docs/faults.md)."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from kms_service.adapters.clock import LogicalClock
from kms_service.adapters.database import EngineOptions, SqlDatabase, migrate, schema_state
from kms_service.adapters.database.engine import transactions_of
from kms_service.adapters.database.migrate import SchemaState
from kms_service.adapters.database.postgresql import HISTORY
from kms_service.domain.catalogue import Model, Project, Version, VersionState, WrappedDataKey
from kms_service.domain.errors import ConfigurationError, StateConflict, StateUnavailable
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.ports import Transaction
from tests.support import postgresql
from tests.support.postgresql import CommitProxy, PostgresServer, name_of

pytestmark = pytest.mark.xdist_group("postgresql")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FACE = ModelName("demo", "face")
PUBLISHER = "spiffe://test.example/publisher/a"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """Of a migrated database with the model `demo/face`."""
    return made(postgres)


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """One that a test may break."""
    with postgresql.running() as server:
        yield server


@pytest.fixture
def opened() -> Iterator[Callable[..., SqlDatabase]]:
    """Opens databases that are closed in the end."""
    databases: list[SqlDatabase] = []

    def open_one(url: str, **options: float) -> SqlDatabase:
        databases.append(SqlDatabase(url, EngineOptions(**options)))  # type: ignore[arg-type]
        return databases[-1]

    yield open_one
    for database in databases:
        database.close()


def made(server: PostgresServer) -> str:
    url = server.new_database()
    migrate(url)
    database = SqlDatabase(url)
    with database.write() as tx:
        tx.projects.insert(Project(ProjectName("demo"), "modelkms-demo", NOW))
        tx.models.insert(Model(FACE, NOW))
    database.close()
    return url


def create(tx: Transaction, request_id: str) -> Version:
    """As the use case: what this request id made before, else a new version."""
    earlier = tx.versions.get_by_request(FACE, PUBLISHER, request_id)
    if earlier is not None:
        return earlier
    version = Version(
        name=VersionName("demo", "face", tx.versions.next_number(FACE)),
        uid=uuid.uuid4().hex,
        state=VersionState.PENDING,
        publisher=PUBLISHER,
        request_id=request_id,
        artifact_id=uuid.uuid4().hex,
        wrapped_key=WrappedDataKey("vault:v1:x", 1),
        create_time=NOW,
    )
    tx.versions.insert(version)
    return version


def stored(database: SqlDatabase) -> dict[str, int]:
    """Request ids by how many versions each made."""
    found: dict[str, int] = {}
    with database.read() as tx:
        for version in tx.versions.list(FACE, 100_000, "").items:
            found[version.request_id] = found.get(version.request_id, 0) + 1
    return found


# --- F58: a reply to COMMIT that gets lost -------------------------------------------------------


def test_f58_reply_to_commit_lost_is_settled_and_not_repeated(
    postgres: PostgresServer, url: str, opened: Callable[..., SqlDatabase]
) -> None:
    with CommitProxy(postgres) as proxy:
        database = opened(postgres.url(name_of(url), proxy.folder))
        database.probe()
        proxy.lose_replies = 1
        calls: list[int] = []

        def work(tx: Transaction) -> int:
            calls.append(1)
            return create(tx, "a").name.number

        assert database.transact(work) == 1
        assert (proxy.lost, len(calls)) == (1, 1)
        assert stored(database) == {"a": 1}


def test_f58_commit_lost_on_the_way_is_repeated_whole(
    postgres: PostgresServer, url: str, opened: Callable[..., SqlDatabase]
) -> None:
    with CommitProxy(postgres) as proxy:
        database = opened(postgres.url(name_of(url), proxy.folder))
        database.probe()
        proxy.lose_commits = 2
        calls: list[int] = []

        def work(tx: Transaction) -> int:
            calls.append(1)
            return create(tx, "a").name.number

        assert database.transact(work) == 1
        assert (proxy.lost, len(calls)) == (2, 3)
        assert stored(database) == {"a": 1}


def test_f58_a_transaction_whose_fate_nobody_knows_is_an_outage(
    postgres: PostgresServer,
    url: str,
    opened: Callable[..., SqlDatabase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way is gone for longer than we ask; a repeated request finds by its id what it made."""
    monkeypatch.setattr("kms_service.adapters.database.postgresql._SETTLE_FOR_S", 0.5)
    with CommitProxy(postgres) as proxy:
        database = opened(postgres.url(name_of(url), proxy.folder))
        database.probe()
        proxy.lose_replies = 1
        proxy.refuse = True
        with pytest.raises(StateUnavailable):
            database.transact(lambda tx: create(tx, "a"))
        proxy.refuse = False
        again = database.transact(lambda tx: create(tx, "a"))
        assert again.name.number == 1
        assert stored(database) == {"a": 1}


def test_f58_a_silent_server_is_an_outage_in_time(
    postgres: PostgresServer, url: str, opened: Callable[..., SqlDatabase]
) -> None:
    with CommitProxy(postgres) as proxy:
        database = opened(postgres.url(name_of(url), proxy.folder), statement_timeout_s=0.2)
        database.probe()
        proxy.silent = True
        started = time.monotonic()
        with pytest.raises(StateUnavailable):
            database.probe()
        assert time.monotonic() - started < 30


# --- F58: conflicts ------------------------------------------------------------------------------


def test_f58_serialization_failures_are_retried_then_told(
    url: str, opened: Callable[..., SqlDatabase]
) -> None:
    """40001 on each attempt: another commits between our read and our write."""
    database, other = opened(url), opened(url)
    calls: list[int] = []

    def work(tx: Transaction, losing: int) -> None:
        tx.versions.list(FACE, 10, "")
        calls.append(1)
        if len(calls) <= losing:
            other.transact(lambda tx: create(tx, str(uuid.uuid4())))
        create(tx, str(uuid.uuid4()))

    database.transact(functools.partial(work, losing=2))
    assert len(calls) == 3
    assert len(stored(database)) == 3

    calls.clear()
    with pytest.raises(StateConflict):
        database.transact(functools.partial(work, losing=1000))
    assert len(calls) == 8


def test_f58_deadlocks_are_retried(url: str, opened: Callable[..., SqlDatabase]) -> None:
    """40P01: two take the same two rows in opposite order, each holding one."""
    database = opened(url)
    with database.write() as tx:
        tx.models.insert(Model(ModelName("demo", "eye"), NOW))
    both_hold_one = threading.Barrier(2, timeout=30)
    first_time = threading.local()

    def work(tx: Transaction, names: list[ModelName]) -> None:
        tx.versions.next_number(names[0])
        if not hasattr(first_time, "over"):
            first_time.over = True
            both_hold_one.wait()
        tx.versions.next_number(names[1])

    names = [FACE, ModelName("demo", "eye")]
    with ThreadPoolExecutor(2) as pool:
        for order in (names, names[::-1]):
            pool.submit(database.transact, functools.partial(work, names=order))
    with database.write() as tx:
        assert [tx.versions.next_number(name) for name in names] == [3, 3]


def test_f58_a_statement_that_takes_too_long_is_ended(url: str) -> None:
    transactions = transactions_of(url, EngineOptions(connections=1, statement_timeout_s=0.2))
    with pytest.raises(StateUnavailable), transactions.read() as connection:
        connection.execute(text("SELECT pg_sleep(30)"))
    with transactions.read() as connection:  # the connection is as good as new
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    transactions.close()


def test_a_full_pool_is_an_outage_and_not_a_hang(
    url: str, opened: Callable[..., SqlDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms_service.adapters.database.postgresql._POOL_TIMEOUT_S", 0.2)
    database = opened(url, connections=1)
    with database.read(), pytest.raises(StateUnavailable):
        database.probe()
    database.probe()


# --- F58: restarts and failover ------------------------------------------------------------------


def publish_until(
    database: SqlDatabase, stop: threading.Event, acknowledged: list[str], problems: list[str]
) -> None:
    """A client: makes versions, repeats a request that failed under the same id until it works."""
    while not stop.is_set():
        request_id = str(uuid.uuid4())
        while True:
            try:
                database.transact(functools.partial(create, request_id=request_id))
            except (StateUnavailable, StateConflict):
                if stop.is_set():
                    return
                time.sleep(0.01)
            except Exception as error:
                problems.append(repr(error))
                return
            else:
                acknowledged.append(request_id)
                break


class Clients:
    """Four of them, publishing until told to stop."""

    def __init__(self, database: SqlDatabase) -> None:
        self.acknowledged: list[str] = []
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=publish_until,
                args=(database, self._stop, self.acknowledged, self.problems),
            )
            for _ in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def until_more(self, count: int) -> None:
        """Wait until they had that many further acknowledgements."""
        wanted, end = len(self.acknowledged) + count, time.monotonic() + 60
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < end, self.problems
            assert not self.problems
            time.sleep(0.01)

    def stop(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert self.problems == []
        return self.acknowledged


@pytest.mark.faults
def test_f58_restarts_and_cut_sessions_neither_lose_nor_double(
    own_server: PostgresServer, opened: Callable[..., SqlDatabase]
) -> None:
    database = opened(made(own_server))
    clients = Clients(database)
    for break_it in (
        own_server.cut_sessions,
        own_server.kill,
        own_server.cut_sessions,
        own_server.stop,
        own_server.kill,
    ):
        clients.until_more(20)
        break_it()
        if break_it != own_server.cut_sessions:
            own_server.start_again()
    clients.until_more(20)
    acknowledged = clients.stop()
    found = stored(database)
    assert set(acknowledged) <= set(found)
    assert set(found.values()) == {1}
    with database.write() as tx:  # numbers have no gap: nothing half-made was committed
        assert tx.versions.next_number(FACE) == len(found) + 1


def test_f58_a_crash_begins_another_history_a_restart_does_not(own_server: PostgresServer) -> None:
    """Numbers of transactions that never reached the disk are given again after a crash."""

    def history() -> object:
        with own_server.connect() as server:
            return server.execute(HISTORY).fetchone()

    first = history()
    own_server.stop()
    own_server.start_again()
    assert history() == first
    own_server.kill()
    own_server.start_again()
    assert history() != first


@pytest.mark.faults
def test_f58_failover_to_a_synchronous_standby_loses_nothing(
    own_server: PostgresServer, opened: Callable[..., SqlDatabase]
) -> None:
    """One URL names both; whoever takes writes is used. What was acknowledged is on the standby."""
    url = made(own_server)
    standby = own_server.standby()
    try:
        both = url.replace(str(own_server.folder), f"{own_server.folder},{standby.folder}")
        database = opened(both)
        clients = Clients(database)
        clients.until_more(50)
        own_server.kill()
        standby.promote()
        clients.until_more(50)
        acknowledged = clients.stop()
        found = stored(database)
        assert set(acknowledged) <= set(found)
        assert set(found.values()) == {1}
    finally:
        standby.remove()


@pytest.mark.faults
def test_f58_after_a_failover_a_transactions_number_proves_nothing(
    own_server: PostgresServer, opened: Callable[..., SqlDatabase]
) -> None:
    """The promoted standby gives the same numbers to other transactions: told as an outage."""
    url = made(own_server)
    standby = own_server.standby()
    try:
        with CommitProxy(own_server) as proxy:
            folders = f"{proxy.folder},{standby.folder}"
            database = opened(url.replace(str(own_server.folder), folders))
            database.probe()
            proxy.lose_replies = 1

            def fail_over() -> None:
                own_server.kill()
                standby.promote()

            proxy.on_lost = fail_over
            with pytest.raises(StateUnavailable):
                database.transact(lambda tx: create(tx, "a"))
        assert database.transact(lambda tx: create(tx, "a")).name.number == 1
        assert stored(database) == {"a": 1}
    finally:
        standby.remove()


# --- F65: schemas --------------------------------------------------------------------------------


def test_f65_a_newer_schema_refuses_start_and_does_not_stop_who_serves(
    postgres: PostgresServer, url: str, opened: Callable[..., SqlDatabase]
) -> None:
    """A rolling upgrade: the new release migrates while the old replica serves and writes."""
    old = opened(url)
    clients = Clients(old)
    clients.until_more(5)
    with postgres.connect(name_of(url)) as connection:  # what a later release's migration does
        connection.execute("ALTER TABLE versions ADD COLUMN later text")
        connection.execute("CREATE TABLE later_table (id int PRIMARY KEY)")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    clients.until_more(20)
    acknowledged = clients.stop()
    old.probe()
    assert set(acknowledged) <= set(stored(old))
    assert schema_state(url) is SchemaState.NEWER


def test_f65_replicas_that_migrate_at_once(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    assert schema_state(url) is SchemaState.EMPTY
    program = f"from kms_service.adapters.database import migrate; migrate({url!r})"
    replicas = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [replica.wait(60) for replica in replicas] == [0, 0, 0]
    assert schema_state(url) is SchemaState.CURRENT


# --- F21: time -----------------------------------------------------------------------------------


def test_f21_replicas_go_by_the_database_and_by_the_one_ahead(
    url: str, opened: Callable[..., SqlDatabase]
) -> None:
    """No machine's wall clock is asked; who restarts, or lags, goes on from the highest mark."""
    databases = [opened(url) for _ in range(3)]
    boottime = [1000.0, 5.0, 77.0]
    first, second = (
        LogicalClock(
            databases[each],
            wall=databases[each].wall,
            boottime=lambda each=each: boottime[each],  # type: ignore[misc]
        )
        for each in (0, 1)
    )
    assert abs(first.now() - second.now()) < timedelta(seconds=30)
    boottime[0] += 3600  # as if the database's clock had been an hour ahead when it started
    first.store_mark()
    second.store_mark()
    third = LogicalClock(databases[2], wall=databases[2].wall, boottime=lambda: boottime[2])
    for clock in (second, third):
        assert timedelta(0) <= first.now() - clock.now() < timedelta(seconds=1)
    before = second.now()
    second.store_mark()
    assert second.now() >= before


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://kms@db.example/kms?sslmode=require", "sslmode must be verify-full"),
        ("postgresql://kms@/kms?host=/run,db.example&sslmode=disable", "must be verify-full"),
        ("postgresql://kms:CANARY@db.example/kms", "database.password_file"),
        ("postgresql://kms@db.example/kms?nonsense=1", "not a PostgreSQL URL"),
        ("mysql://kms@db.example/kms", "must be sqlite:///FILE or postgresql://"),
    ],
)
def test_urls_that_are_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        SqlDatabase(url)
    assert "CANARY" not in caught.value.message


def test_tls_cannot_be_forgotten(tmp_path: Path) -> None:
    """Nobody listens there; what matters is what we would have asked for."""
    from kms_service.adapters.database.postgresql import _parameters

    options = EngineOptions(ca_file=tmp_path / "ca.pem")
    asked = _parameters("postgresql://kms@db.example/kms", options)
    assert asked["sslmode"] == "verify-full"
    assert asked["sslrootcert"] == str(tmp_path / "ca.pem")
    assert _parameters("postgresql://kms@db.example/kms", EngineOptions())["sslrootcert"] == (
        "system"
    )


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kms_service.adapters.database.postgresql", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'modelkms-server\[postgresql\]'"):
        SqlDatabase("postgresql://kms@/kms")


def test_a_server_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    database = SqlDatabase(f"postgresql://kms@/kms?host={tmp_path}")
    with pytest.raises(StateUnavailable):
        database.probe()
    database.close()


def test_a_password_file_is_read_and_never_shown(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.new_database()
    migrate(url)
    file = tmp_path / "password"
    database = SqlDatabase(url, EngineOptions(password_file=file))
    with pytest.raises(StateUnavailable) as caught:
        database.probe()
    assert "CANARY" not in repr(caught.value)
    file.write_text("CANARY\n")
    database.probe()
    assert "CANARY" not in repr(database.transactions.engine.url)
    database.close()
