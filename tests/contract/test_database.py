"""One suite for the port `Database`: SQLite and PostgreSQL, real ones."""

from __future__ import annotations

import base64
import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from kms_service.adapters.database import SqlDatabase
from kms_service.adapters.database.pages import encode_token
from kms_service.domain.audit import ChainHead
from kms_service.domain.backups import Backup
from kms_service.domain.catalogue import (
    NO_DATA_KEY,
    Alias,
    Model,
    Project,
    VersionState,
    WrappedDataKey,
)
from kms_service.domain.decisions import (
    AccessRequest,
    Action,
    Circumstances,
    RecordedDecision,
    Resource,
)
from kms_service.domain.destruction import Destruction, Moment
from kms_service.domain.errors import (
    ConcurrentUpdate,
    InvalidField,
    ResourceExists,
    StateConflict,
)
from kms_service.domain.identity import Principal
from kms_service.domain.leases import Lease
from kms_service.domain.names import AliasName, LeaseName, ModelName, ProjectName, VersionName
from kms_service.domain.ports import Database, LeaseFilter, Page, Revoked, Transaction, Wake
from kms_service.domain.standing import Block, Freeze
from kms_service.domain.trims import Trim
from tests.contract.conftest import Migrated
from tests.contract.rows import DEMO, FACE, NOW, PIN, version

pytestmark = pytest.mark.xdist_group("postgresql")

DAY = timedelta(days=1)
T = TypeVar("T")


def lease(number: int, **changes: object) -> Lease:
    whole = Lease(
        name=LeaseName("demo", f"{number:032x}"),
        version=VersionName("demo", "face", 1),
        version_uid=f"{1:032x}",
        principal="spiffe://test.example/reader/a",
        instance="ab" * 32,
        issue_time=NOW + timedelta(seconds=number),
        expire_time=NOW + timedelta(hours=1),
        absolute_end_time=NOW + timedelta(hours=12),
        suite=2,
        attributes={"site": "Plzeň", "line": "3"},
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def everything(list_page: Callable[[str], Page[T]]) -> list[T]:
    items: list[T] = []
    token = ""
    while True:
        page = list_page(token)
        items += page.items
        token = page.next_page_token
        if not token:
            return items


def fail_after(act: Callable[[T], object], argument: T) -> None:
    act(argument)
    raise ZeroDivisionError


# --- transactions ---------------------------------------------------------------------------------


def test_what_is_committed_is_read_and_what_fails_is_not(database: SqlDatabase) -> None:
    project = Project(DEMO, "modelkms-demo", NOW)
    with database.write() as tx:
        tx.projects.insert(project)
    with pytest.raises(ZeroDivisionError), database.write() as tx:
        fail_after(tx.projects.insert, replace(project, name=ProjectName("other")))
    with database.read() as tx:
        assert tx.projects.get(DEMO) == project
        assert tx.projects.get(ProjectName("other")) is None


def test_a_reader_sees_one_snapshot(filled: SqlDatabase) -> None:
    with filled.read() as before:
        assert before.versions.get(version(1).name) is None
        with filled.write() as tx:
            tx.versions.insert(version(1))
        assert before.versions.get(version(1).name) is None
    with filled.read() as after:
        assert after.versions.get(version(1).name) == version(1)


def test_transact_gives_what_the_work_gives(filled: SqlDatabase) -> None:
    assert filled.transact(lambda tx: tx.versions.next_number(FACE)) == 1
    assert filled.transact(lambda tx: tx.versions.next_number(FACE)) == 2


def test_transact_tells_what_follows_once_it_is_committed(filled: SqlDatabase) -> None:
    seen: list[Project | None] = []
    wakers: list[threading.Thread] = []

    def then(_result: None, wake: Wake) -> None:
        with filled.read() as tx:
            seen.append(tx.projects.get(new.name))
        wakers.append(threading.Thread(target=wake))
        wakers[0].start()

    new = Project(ProjectName("new"), "modelkms-new", NOW)
    filled.transact(lambda tx: tx.projects.insert(new), then)
    wakers[0].join()
    assert seen == [new]
    with pytest.raises(ResourceExists):
        filled.transact(lambda tx: tx.projects.insert(new), then)
    assert len(seen) == 1


def test_transact_rolls_back_what_raises_and_does_not_repeat_it(filled: SqlDatabase) -> None:
    calls = []

    def work(tx: Transaction) -> None:
        calls.append(tx.versions.next_number(FACE))
        raise ConcurrentUpdate

    with pytest.raises(ConcurrentUpdate):
        filled.transact(work)
    assert calls == [1]
    assert filled.transact(lambda tx: tx.versions.next_number(FACE)) == 1


def test_concurrent_writers_lose_nothing(filled: SqlDatabase) -> None:
    """Each reads, then writes what it read: lost updates and skew would show as a number twice."""

    def one(_: int) -> int:
        def work(tx: Transaction) -> int:
            count = len(tx.leases.list(LeaseFilter("demo"), 1000, "").items)
            tx.leases.insert(lease(count + 1))
            return count + 1

        for _attempt in range(100):
            try:
                return filled.transact(work)
            except StateConflict:
                continue
        raise AssertionError("never got through")

    with ThreadPoolExecutor(4) as pool:
        numbers = sorted(pool.map(one, range(24)))
    assert numbers == list(range(1, 25))


def test_a_lease_never_outlives_a_racing_disable(filled: SqlDatabase) -> None:
    """What use cases rely on: read ENABLED, insert a lease; against: disable, revoke all. Each
    reads what the other writes, so one of them has to lose."""
    enabled = version(1, state=VersionState.ENABLED, pin=PIN)
    filled.transact(lambda tx: tx.versions.insert(enabled))
    for round_number in range(10):
        gate = threading.Barrier(2)

        def issue(number: int = round_number, gate: threading.Barrier = gate) -> None:
            def work(tx: Transaction) -> None:
                found = tx.versions.get(enabled.name)
                if found is not None and found.state is VersionState.ENABLED:
                    tx.leases.insert(lease(number + 1))

            gate.wait()
            filled.transact(work)

        def disable(gate: threading.Barrier = gate) -> None:
            def work(tx: Transaction) -> None:
                found = tx.versions.get(enabled.name)
                assert found is not None
                tx.versions.update(found.disable())
                tx.leases.revoke(LeaseFilter("demo", model="face", number=1), NOW)

            gate.wait()
            filled.transact(work)

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(issue), pool.submit(disable)]:
                future.result()
        with filled.read() as tx:
            assert tx.leases.count_live(NOW) == 0
        enable = filled.transact

        def back(tx: Transaction) -> None:
            found = tx.versions.get(enabled.name)
            assert found is not None
            tx.versions.update(found.enable())

        enable(back)


def test_probe(database: SqlDatabase) -> None:
    database.probe()


# --- projects, models, aliases --------------------------------------------------------------------


def test_projects(database: SqlDatabase) -> None:
    # Sorted by bytes on both: "-" before digits before letters, whatever the locale says.
    names = ["a", "a-b", "a0", "aa", "b"]
    for name in reversed(names):
        with database.write() as tx:
            tx.projects.insert(Project(ProjectName(name), f"k-{name}", NOW))
    with pytest.raises(ResourceExists), database.write() as tx:
        tx.projects.insert(Project(ProjectName("a"), "k", NOW))
    with database.read() as tx:
        found = everything(lambda token: tx.projects.list(2, token))
        assert found == [Project(ProjectName(name), f"k-{name}", NOW) for name in names]
        with pytest.raises(InvalidField):
            tx.projects.list(2, "nonsense")


def test_models(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        tx.models.insert(Model(ModelName("demo", "eye"), NOW))
    with pytest.raises(ResourceExists), filled.write() as tx:
        tx.models.insert(Model(FACE, NOW))
    with filled.read() as tx:
        assert tx.models.get(FACE) == Model(FACE, NOW, {"tier": "gold", "ä": "ü"})
        assert tx.models.get(ModelName("demo", "none")) is None
        found = everything(lambda token: tx.models.list(DEMO, 1, token))
    assert [str(model.name) for model in found] == [
        "projects/demo/models/eye",
        "projects/demo/models/face",
    ]


def test_aliases(filled: SqlDatabase) -> None:
    names = [AliasName("demo", "face", alias) for alias in ("beta", "stable")]
    with filled.write() as tx:
        for number in (1, 2):
            tx.versions.insert(version(number))
        for name in names:
            tx.aliases.put(Alias(name, 1, NOW))
        tx.aliases.put(Alias(names[1], 2, NOW + timedelta(seconds=1)))
    with filled.read() as tx:
        assert tx.aliases.get(names[1]) == Alias(names[1], 2, NOW + timedelta(seconds=1))
        assert tx.aliases.get(AliasName("demo", "face", "none")) is None
        assert tx.aliases.of_versions(FACE) == {1: ("beta",), 2: ("stable",)}
        found = everything(lambda token: tx.aliases.list(FACE, 1, token))
    assert [alias.name for alias in found] == names


# --- versions -------------------------------------------------------------------------------------


def test_versions_come_back_whole(filled: SqlDatabase) -> None:
    pinned = version(2, state=VersionState.ENABLED, pin=PIN, finalize_time=NOW, revision=7)
    with filled.write() as tx:
        tx.versions.insert(version(1))
        tx.versions.insert(pinned)
    with filled.read() as tx:
        assert tx.versions.get(version(1).name) == version(1)
        assert tx.versions.get(pinned.name) == pinned
        assert tx.versions.get(version(3).name) is None
        by_request = tx.versions.get_by_request(FACE, pinned.publisher, pinned.request_id)
        assert by_request == pinned
        assert tx.versions.get_by_request(FACE, "other", pinned.request_id) is None


@pytest.mark.parametrize(
    "clash",
    [
        {"uid": version(1).uid},
        {"request_id": version(1).request_id},
        {"artifact_id": version(1).artifact_id},
        {"name": version(1).name},
    ],
    ids=lambda clash: next(iter(clash)),
)
def test_what_must_be_unique(filled: SqlDatabase, clash: dict[str, object]) -> None:
    with filled.write() as tx:
        tx.versions.insert(version(1))
    with pytest.raises(ConcurrentUpdate), filled.write() as tx:
        tx.versions.insert(version(2, **clash))


def test_numbers_are_never_given_twice(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        assert [tx.versions.next_number(FACE) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ZeroDivisionError), filled.write() as tx:
        fail_after(tx.versions.next_number, FACE)
    with filled.write() as tx:
        assert tx.versions.next_number(FACE) == 4


def test_update_compares_the_revision(filled: SqlDatabase) -> None:
    first = version(1)
    with filled.write() as tx:
        tx.versions.insert(first)
    enabled = first.finalize(PIN, NOW)
    with filled.write() as tx:
        tx.versions.update(enabled)
    with pytest.raises(ConcurrentUpdate), filled.write() as tx:
        tx.versions.update(enabled)
    with filled.read() as tx:
        assert tx.versions.get(first.name) == enabled


def test_pages_of_versions(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        for number in range(1, 8):
            tx.versions.insert(version(number))
    with filled.read() as tx:
        for size in (1, 3, 7, 8):
            found = everything(functools.partial(tx.versions.list, FACE, size))
            assert found == [version(number) for number in range(7, 0, -1)]
        assert everything(lambda token: tx.versions.list(ModelName("demo", "x"), 5, token)) == []


@pytest.mark.parametrize("position", ["[-1]", "[9223372036854775808]", "[1.5]", '["a"]', "[true]"])
def test_page_tokens_that_are_none_of_ours(filled: SqlDatabase, position: str) -> None:
    token = base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")
    with filled.read() as tx, pytest.raises(InvalidField):
        tx.versions.list(FACE, 5, token)


def test_a_page_token_past_every_number(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        tx.versions.insert(version(1))
    with filled.read() as tx:
        assert tx.versions.list(FACE, 5, encode_token(2**62)).items == [version(1)]


def test_what_was_never_finalized(filled: SqlDatabase) -> None:
    destroyed = version(3, state=VersionState.DESTROYED, wrapped_key=NO_DATA_KEY)
    pinned = version(4, state=VersionState.DESTROYED, wrapped_key=NO_DATA_KEY, pin=PIN)
    with filled.write() as tx:
        for each in (version(1), version(2), destroyed, pinned):
            tx.versions.insert(each)
    with filled.read() as tx:
        assert tx.versions.pending_before(NOW + timedelta(seconds=2), 10) == [version(1)]
        assert tx.versions.pending_before(NOW + timedelta(hours=1), 1) == [version(1)]
        assert tx.versions.never_finalized(NOW, 10) == [destroyed]
        assert tx.versions.never_finalized(destroyed.create_time, 10) == []


def test_keys_are_counted_by_master_key_version(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        for number, wrapped in ((1, 1), (2, 1), (3, 2)):
            key = WrappedDataKey(f"vault:v{wrapped}:x", wrapped)
            tx.versions.insert(version(number, wrapped_key=key))
        gone = version(4, state=VersionState.DESTROYED, wrapped_key=NO_DATA_KEY)
        tx.versions.insert(gone)
    with filled.read() as tx:
        assert tx.versions.count_by_master_key_version(DEMO) == {1: 2, 2: 1}
        assert tx.versions.count_by_master_key_version(ProjectName("other")) == {}


# --- leases ---------------------------------------------------------------------------------------


def test_leases_renewed_and_revoked(filled: SqlDatabase) -> None:
    first = lease(1)
    with filled.write() as tx:
        tx.leases.insert(first)
    renewed = replace(first, renewals=1, expire_time=NOW + timedelta(hours=2))
    with filled.write() as tx:
        tx.leases.renew(renewed)
    with pytest.raises(ConcurrentUpdate), filled.write() as tx:
        tx.leases.renew(renewed)
    with filled.read() as tx:
        assert tx.leases.get(first.name) == renewed
        assert tx.leases.get(LeaseName("demo", "f" * 32)) is None
    for ended in (1, 0):
        with filled.write() as tx:
            assert tx.leases.revoke(first.name, NOW) == ended
    with pytest.raises(ConcurrentUpdate), filled.write() as tx:
        tx.leases.renew(replace(renewed, renewals=2))
    with filled.read() as tx:
        assert tx.leases.get(first.name) == replace(renewed, revoke_time=NOW)


def test_leases_filtered_and_paged(filled: SqlDatabase) -> None:
    other = "spiffe://test.example/reader/b"
    with filled.write() as tx:
        for number in range(1, 6):
            # Issued at the same time by twos, so that pages go by the id as well.
            tx.leases.insert(lease(number, issue_time=NOW + timedelta(seconds=number // 2)))
        tx.leases.insert(lease(9, principal=other))
        assert tx.leases.revoke(LeaseFilter("demo", principal=other), NOW) == 1
    with filled.read() as tx:
        assert tx.leases.count_live(NOW) == 5
        assert tx.leases.count_live(NOW + timedelta(hours=1)) == 0
        of_other = tx.leases.list(LeaseFilter("demo", principal=other), 10, "").items
        assert [each.name.lease[-1] for each in of_other] == ["9"]
        live = LeaseFilter("demo", model="face", number=1, live_at=NOW)
        for size in (1, 2, 5):
            found = everything(functools.partial(tx.leases.list, live, size))
            assert [each.name.lease[-1] for each in found] == list("54321")


def test_leases_that_ended_may_go_but_for_the_last_of_a_principal_and_version(
    filled: SqlDatabase,
) -> None:
    other, second = "spiffe://test.example/reader/b", VersionName("demo", "face", 2)
    long_ago = {"expire_time": NOW - 2 * DAY}
    with filled.write() as tx:
        for number in (1, 2, 3):
            tx.leases.insert(lease(number, **long_ago))
        # At the same moment as the third: the id decides which is the last.
        tx.leases.insert(lease(4, **long_ago, issue_time=lease(3).issue_time))
        tx.leases.insert(lease(5, **long_ago, principal=other))
        tx.leases.insert(lease(6, **long_ago, version=second))
        tx.leases.insert(lease(7, expire_time=NOW - DAY))
        tx.leases.insert(lease(8, **long_ago, principal=other, version=second))
        tx.leases.insert(lease(9, principal=other, version=second))  # is live
        tx.leases.revoke(lease(2).name, NOW - 3 * DAY)
    everyone = {1, 2, 3, 4, 8}
    with filled.read() as tx:
        assert _numbers(tx.ended_leases.list(NOW - DAY, 100)) == everyone
        assert len(tx.ended_leases.list(NOW - DAY, 3)) == 3
        assert _numbers(tx.ended_leases.list(NOW - 2 * DAY, 100)) == set()
        due = tx.ended_leases.list(NOW - DAY, 100)
    with filled.write() as tx:
        assert tx.ended_leases.delete(due) == len(everyone)
        assert tx.ended_leases.delete([*due, LeaseName("other", "1" * 32)]) == 0
        assert tx.ended_leases.list(NOW - DAY, 100) == []
    with filled.read() as tx:
        left = tx.leases.list(LeaseFilter("demo"), 100, "").items
        assert _numbers(each.name for each in left) == {5, 6, 7, 9}
    # Where they are due in another order than they were issued in.
    with filled.write() as tx:
        tx.leases.insert(lease(20, expire_time=NOW - 3 * DAY))
        tx.leases.insert(lease(21, expire_time=NOW - 5 * DAY))
        tx.leases.insert(lease(22, expire_time=NOW - 4 * DAY))
        assert [int(each.lease, 16) for each in tx.ended_leases.list(NOW, 2)] == [21, 20]


def _numbers(names: Iterable[LeaseName]) -> set[int]:
    return {int(name.lease, 16) for name in names}


# --- the clock's mark -----------------------------------------------------------------------------


def test_heads_of_audit_chains(database: SqlDatabase) -> None:
    with database.write() as tx:
        tx.audit_heads.put(ChainHead("green", 2**40, "a" * 64))
        tx.audit_heads.put(ChainHead("blue", 1, "b" * 64))
    with database.write() as tx:
        tx.audit_heads.put(ChainHead("green", 2**40 + 1, "c" * 64))
    with database.read() as tx:
        assert list(tx.audit_heads.list()) == [
            ChainHead("blue", 1, "b" * 64),
            ChainHead("green", 2**40 + 1, "c" * 64),
        ]


# --- blocks, freezes, revocations ----------------------------------------------------------------


def test_blocks(database: SqlDatabase) -> None:
    hour = timedelta(hours=1)
    blocks = {
        name: Block(f"spiffe://test.example/{name}", "why ü", "spiffe://test.example/s", NOW, until)
        for name, until in (("b", None), ("a", NOW + hour), ("c", NOW + 2 * hour))
    }
    with database.write() as tx:
        for block in blocks.values():
            tx.blocks.put(block)
    with database.read() as tx:
        assert tx.blocks.get("spiffe://test.example/b") == blocks["b"]
        assert tx.blocks.get("spiffe://test.example/d") is None
        assert everything(lambda token: tx.blocks.list(NOW, 2, token)) == [
            blocks["a"],
            blocks["b"],
            blocks["c"],
        ]
        assert list(tx.blocks.list(NOW + hour, 10, "").items) == [blocks["b"], blocks["c"]]
    other = replace(blocks["a"], reason="another", until=None)
    with database.write() as tx:
        tx.blocks.put(other)
        assert tx.blocks.get(other.principal) == other
        assert [tx.blocks.delete(other.principal) for _ in range(2)] == [True, False]


def test_backups(filled: SqlDatabase) -> None:
    begun = Backup("a" * 32, "db1:/ä", NOW)
    whole = Backup("b" * 32, "db1:/b", NOW, {"modelkms-demo": 3})
    later = Backup("0" * 32, "db1:/c", NOW + timedelta(hours=1), {})
    with filled.write() as tx:
        assert tx.backups.get(begun.id) is None
        for backup in (later, begun, whole):
            tx.backups.put(backup)
    with filled.read() as tx:
        assert everything(lambda token: tx.backups.list(1, token)) == [later, whole, begun]
        assert list(tx.backups.not_destroyed()) == [begun, whole, later]
    gone = begun.declare_destroyed("spiffe://test.example/s", "why", NOW)
    with filled.write() as tx:
        tx.backups.put(gone)
    with filled.read() as tx:
        assert tx.backups.get(begun.id) == gone
        assert list(tx.backups.not_destroyed()) == [whole, later]


def test_trims(filled: SqlDatabase) -> None:
    asked = Trim("modelkms-demo", DEMO, 3, "spiffe://test.example/s", NOW, NOW + timedelta(days=7))
    with filled.write() as tx:
        assert tx.trims.get("modelkms-demo") is None
        tx.trims.put(asked)
    confirmed = replace(asked, confirmed_by="spiffe://test.example/w")
    with filled.write() as tx:
        assert tx.trims.get("modelkms-demo") == asked
        tx.trims.put(confirmed)
    with filled.read() as tx:
        assert tx.trims.get("modelkms-demo") == confirmed
        assert tx.trims.get("modelkms-other") is None


def test_data_keys_of_all_projects_that_share_a_master_key(filled: SqlDatabase) -> None:
    sharing, face = ProjectName("sharing"), ModelName("sharing", "face")
    with filled.write() as tx:
        tx.projects.insert(Project(sharing, "modelkms-demo", NOW))
        tx.models.insert(Model(face, NOW))
        tx.versions.insert(version(1))
        of_another = version(2, name=VersionName("sharing", "face", 1))
        tx.versions.insert(replace(of_another, wrapped_key=WrappedDataKey("vault:v4:x", 4)))
    with filled.read() as tx:
        assert tx.versions.count_under_master_key("modelkms-demo") == {1: 1, 4: 1}
        assert tx.versions.count_by_master_key_version(DEMO) == {1: 1}
        assert tx.versions.count_under_master_key("modelkms-other") == {}


def test_freezes(filled: SqlDatabase) -> None:
    other = ProjectName("other")
    freezes = [Freeze(name, "why", "spiffe://test.example/s", NOW) for name in (DEMO, other)]
    with filled.write() as tx:
        tx.projects.insert(Project(other, "modelkms-other", NOW))
        for freeze in freezes:
            tx.freezes.put(freeze)
        tx.freezes.put(freezes[0])
    with filled.read() as tx:
        assert tx.freezes.get(DEMO) == freezes[0]
        assert everything(lambda token: tx.freezes.list(1, token)) == freezes
    with filled.write() as tx:
        assert [tx.freezes.delete(DEMO) for _ in range(2)] == [True, False]
        assert tx.freezes.get(DEMO) is None


def test_revocations_are_numbered_in_their_order(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        for number in range(7):
            tx.leases.insert(lease(number, principal=f"spiffe://test.example/{number % 2}"))
        before = tx.leases.last_revocation()
    with filled.write() as tx:
        assert tx.leases.revoke(lease(1).name, NOW + timedelta(minutes=1)) == 1
    with filled.write() as tx:
        of_one = LeaseFilter(principal="spiffe://test.example/0")
        assert tx.leases.revoke(of_one, NOW + timedelta(minutes=1)) == 4
    with filled.read() as tx:
        assert tx.leases.last_revocation() == before + 2
        first, *rest = tx.leases.revoked_after(before, 3)
        assert first == Revoked(before + 1, lease(1).name)
        # All of the second act, though it is more than was asked for.
        assert {entry.revocation for entry in rest} == {before + 2}
        assert {entry.lease for entry in rest} == {lease(number).name for number in (0, 2, 4, 6)}
        assert tx.leases.revoked_after(before + 2, 3) == []


def test_leases_are_counted(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        for number in range(3):
            tx.leases.insert(lease(number))
        tx.leases.revoke(lease(0).name, NOW)
        mine = LeaseFilter("demo", principal=lease(0).principal, model="face")
        assert tx.leases.count(mine) == 3
        assert tx.leases.count(replace(mine, live_at=NOW)) == 2
        assert tx.leases.count(replace(mine, number=2)) == 0


def test_a_filter_that_matches_everything_revokes_nothing(filled: SqlDatabase) -> None:
    with filled.write() as tx:
        tx.leases.insert(lease(0))
        with pytest.raises(ValueError, match="every lease"):
            tx.leases.revoke(LeaseFilter(), NOW)
        assert tx.leases.count_live(NOW) == 1


def test_f21_the_clock_mark_never_goes_back(database: SqlDatabase) -> None:
    assert database.clock_mark() is None
    assert database.store_clock_mark(NOW) == NOW
    assert database.store_clock_mark(NOW - timedelta(hours=1)) == NOW
    assert database.clock_mark() == NOW
    later = NOW + timedelta(microseconds=1)
    assert database.store_clock_mark(later) == later


def test_the_wall_clock(database: SqlDatabase) -> None:
    assert abs(database.wall() - datetime.now(UTC)) < timedelta(minutes=1)


def test_is_a_database(database: SqlDatabase) -> None:
    port: Database = database
    assert port is database


def decision(number: int, *, permitted: bool, model: str | None = "face") -> RecordedDecision:
    token = Principal(
        "oidc:k8s:app",
        "",
        "",
        "0" * 64,
        issuer="k8s",
        subject="app",
        groups=("k8s:ä",),
        claims=(("namespace", ("prod", "ü")),),
        instance_proven=False,
    )
    return RecordedDecision(
        id=f"{number:032x}",
        request=AccessRequest(
            token,
            Action.LEASE_DATA_KEY,
            Resource("demo", model, {"tier": "gold"}),
            NOW + timedelta(seconds=number),
            Circumstances("10.0.0.1", 1, "0.1.0", {"platform": "ios"}),
        ),
        permitted=permitted,
        policies=("reader", "ä"),
        epoch="ab" * 32,
        repeats=3,
        redacted=True,
    )


def test_decisions_come_back_whole_and_newest_first(database: SqlDatabase) -> None:
    kept = [decision(1, permitted=True), decision(2, permitted=False), decision(3, permitted=True)]
    with database.write() as tx:
        tx.decisions.record(kept)
    with database.write() as tx:
        tx.decisions.record(kept[:1])  # again, after a commit whose reply was lost
        tx.decisions.record([])
    with database.read() as tx:
        assert tx.decisions.newest(2) == [kept[2], kept[1]]
        assert tx.decisions.get(kept[0].id) == kept[0]
        assert tx.decisions.get("f" * 32) is None


def test_last_uses_are_of_permits_and_of_the_models_of_a_project(database: SqlDatabase) -> None:
    with database.write() as tx:
        tx.decisions.record([decision(1, permitted=True), decision(2, permitted=False)])
        tx.decisions.record([decision(3, permitted=False), decision(4, permitted=True, model="b")])
    with database.read() as tx:
        whole, face = Resource("demo"), Resource("demo", "face")
        assert tx.decisions.last_uses(Action.LEASE_DATA_KEY, face) == {
            "oidc:k8s:app": NOW + timedelta(seconds=1)
        }
        assert tx.decisions.last_uses(Action.LEASE_DATA_KEY, whole) == {
            "oidc:k8s:app": NOW + timedelta(seconds=4)
        }
        assert tx.decisions.last_uses(Action.GET_MODEL, face) == {}
        principal, seen = tx.decisions.principals()["oidc:k8s:app"]
        assert principal == decision(4, permitted=True).request.principal
        assert seen == NOW + timedelta(seconds=4)


def test_only_the_newest_decisions_and_uses_are_kept(database: SqlDatabase) -> None:
    with database.write() as tx:
        for number in range(1, 6):
            tx.decisions.record([decision(number, permitted=True, model=f"m{number}")])
        tx.decisions.prune(3, 2)
    with database.read() as tx:
        assert [each.id for each in tx.decisions.newest(9)] == [f"{n:032x}" for n in (5, 4, 3)]
        used = [
            tx.decisions.last_uses(Action.LEASE_DATA_KEY, Resource("demo", f"m{number}"))
            for number in range(1, 6)
        ]
        assert [bool(each) for each in used] == [False, False, False, True, True]


# --- destruction ----------------------------------------------------------------------------------


def test_what_was_decided_about_a_versions_end_is_kept(filled: SqlDatabase) -> None:
    whole = Destruction("spiffe://a", Moment(NOW + DAY, DAY), True, "spiffe://b", NOW + 2 * DAY)
    for number, destruction in enumerate(
        [None, replace(whole, confirmed_by="", destroy_time=None), whole], start=1
    ):
        ending = version(number, destruction=destruction)
        with filled.write() as tx:
            tx.versions.insert(ending)
        with filled.read() as tx:
            assert tx.versions.get(ending.name) == ending
    with filled.write() as tx:
        restored = version(3, destruction=None, revision=1)
        tx.versions.update(restored)
    with filled.read() as tx:
        assert tx.versions.get(restored.name) == restored


def test_due_means_scheduled_confirmed_and_both_times_reached(filled: SqlDatabase) -> None:
    due = Moment(NOW, 10 * DAY)
    whole = Destruction("spiffe://a", due, False, "spiffe://b")
    later = timedelta(microseconds=1)
    cases = [
        (whole, VersionState.DESTROY_SCHEDULED),
        (replace(whole, confirmed_by=""), VersionState.DESTROY_SCHEDULED),
        (replace(whole, due=Moment(NOW + later, due.served)), VersionState.DESTROY_SCHEDULED),
        (replace(whole, due=Moment(NOW, due.served + later)), VersionState.DESTROY_SCHEDULED),
        (whole, VersionState.DESTROYED),
        (whole, VersionState.DESTROY_SCHEDULED),
    ]
    with filled.write() as tx:
        for number, (destruction, state) in enumerate(cases, start=1):
            tx.versions.insert(version(number, destruction=destruction, state=state))
    with filled.read() as tx:
        found = {each.name.number for each in tx.versions.destroy_due(due, 100)}
        assert len(tx.versions.destroy_due(due, 1)) == 1
    assert found == {1, 6}


def test_f60_served_time_counts_no_gap(database: SqlDatabase) -> None:
    assert database.served_time() == timedelta(0)
    mark = NOW
    for step, served in [
        (timedelta(0), 0),  # the first
        (timedelta(seconds=10), 10),
        (timedelta(seconds=10), 20),
        (timedelta(days=30), 20 + 600),  # down, or a clock set forward
        (timedelta(minutes=10), 20 + 1200),
        (timedelta(seconds=-5), 20 + 1200),  # another replica, a little behind
        (timedelta(seconds=15), 20 + 1210),
    ]:
        mark += step
        database.store_clock_mark(mark)
        assert database.served_time() == timedelta(seconds=served)


def test_f60_scrubbed_files_hold_no_destroyed_key(filled: SqlDatabase, migrated: Migrated) -> None:
    raw = migrated.raw
    keys = {number: f"vault:v1:{number:04d}{'k' * 60}{number:04d}" for number in range(1, 200)}
    with filled.write() as tx:
        for number, key in keys.items():
            tx.versions.insert(version(number, wrapped_key=WrappedDataKey(key, 1)))
    assert not filled.scrub()
    assert all(key.encode() in raw() for key in (keys[1], keys[199]))
    for number in range(1, 200, 2):
        with filled.write() as tx:
            gone = version(
                number, wrapped_key=NO_DATA_KEY, state=VersionState.DESTROYED, revision=1
            )
            tx.versions.update(gone)
    assert filled.scrub()
    found = raw()
    assert {number for number, key in keys.items() if key.encode() in found} == set(
        range(2, 200, 2)
    )
    assert not filled.scrub()
    with filled.read() as tx:
        assert tx.versions.count_by_master_key_version(DEMO) == {1: 99}
