"""One suite for the port `Rewraps`: SQLite and PostgreSQL, real ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from kms_service.adapters.database import SqlDatabase
from kms_service.adapters.database.rewraps import CLAIM_FOR
from kms_service.domain.catalogue import (
    NO_DATA_KEY,
    Model,
    Project,
    Version,
    VersionState,
    WrappedDataKey,
)
from kms_service.domain.errors import RewrapEnded
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.rewrapping import (
    Finished,
    NothingYet,
    Rewrap,
    RewrapBatch,
    RewrapFailure,
    RewrapItem,
    Rewrapped,
    RewrapState,
)
from kms_service.usecases.rewrap_data_keys import new_rewrap
from tests.contract.rows import DEMO, NOW, PIN, version

pytestmark = pytest.mark.xdist_group("postgresql")

OFFICER = "spiffe://test.example/security/a"
EYE = ModelName("demo", "eye")


@pytest.fixture
def keys(filled: SqlDatabase) -> SqlDatabase:
    """Five data keys under version 1 (of two models), one under 2, one destroyed, and one of
    another project."""
    other = ModelName("other", "face")
    gone = version(7, state=VersionState.DESTROYED, wrapped_key=NO_DATA_KEY)
    with filled.write() as tx:
        tx.models.insert(Model(EYE, NOW))
        tx.projects.insert(Project(ProjectName("other"), "modelkms-other", NOW))
        tx.models.insert(Model(other, NOW))
        for number in range(1, 4):
            tx.versions.insert(version(number))
        for number in (4, 5):
            tx.versions.insert(version(number, name=VersionName("demo", "eye", number)))
        tx.versions.insert(version(6, wrapped_key=WrappedDataKey("vault:v2:key6", 2)))
        tx.versions.insert(gone)
        tx.versions.insert(version(8, name=VersionName("other", "face", 1)))
    return filled


def begun(database: SqlDatabase, *, target: int = 2, keys_per_second: int = 0) -> Rewrap:
    return database.rewraps.start(
        new_rewrap(DEMO, "modelkms-demo", target, OFFICER, NOW, keys_per_second)
    )


def batch_of(
    database: SqlDatabase, rewrap: Rewrap, size: int = 100, after_s: float = 0
) -> RewrapBatch:
    got = database.rewraps.claim(rewrap.name, size, NOW + timedelta(seconds=after_s))
    assert isinstance(got, RewrapBatch)
    return got


def moved(item: RewrapItem, to: int = 2) -> Rewrapped:
    return Rewrapped(item, WrappedDataKey(f"vault:v{to}:new{item.uid}", to))


def settle(
    database: SqlDatabase,
    batch: RewrapBatch,
    failed: Sequence[RewrapItem] = (),
    *,
    whole: bool = True,
) -> int:
    return database.rewraps.settle(
        batch,
        [moved(item) for item in batch.items if item not in failed],
        [RewrapFailure(item.version, "KEY_RECORD_CORRUPT") for item in failed],
        NOW,
        whole=whole,
    )


def stored(database: SqlDatabase, name: VersionName) -> Version:
    with database.read() as tx:
        found = tx.versions.get(name)
    assert found is not None
    return found


def numbers(batch: RewrapBatch) -> list[int]:
    return [item.version.number for item in batch.items]


def test_start_counts_what_is_under_older_versions(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    assert (rewrap.total, rewrap.left, rewrap.state) == (5, 5, RewrapState.RUNNING)
    assert keys.rewraps.get(rewrap.name) == rewrap
    assert keys.rewraps.latest(DEMO) == rewrap
    assert keys.rewraps.latest(ProjectName("other")) is None
    assert keys.rewraps.running() == [rewrap]
    assert keys.rewraps.keys_under_older(DEMO, 2) == 5
    assert keys.rewraps.keys_under_older(DEMO, 3) == 6
    assert keys.rewraps.keys_under_older(DEMO, 1) == 0


def test_a_second_start_joins_the_first(keys: SqlDatabase) -> None:
    first = begun(keys)
    assert begun(keys, target=3) == first
    with ThreadPoolExecutor(4) as pool:
        assert {each.name for each in pool.map(lambda _: begun(keys), range(8))} == {first.name}


def test_all_keys_are_given_out_once_and_moved(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    batches = [batch_of(keys, rewrap, 2) for _ in range(3)]
    assert [numbers(batch) for batch in batches] == [[4, 5], [1, 2], [3]]
    assert isinstance(keys.rewraps.claim(rewrap.name, 2, NOW), NothingYet)  # others have them
    assert [settle(keys, batch) for batch in batches] == [2, 2, 1]
    ended = keys.rewraps.claim(rewrap.name, 2, NOW)
    assert isinstance(ended, Finished)
    assert (ended.rewrap.rewrapped, ended.rewrap.failed, ended.rewrap.left) == (5, 0, 0)
    assert ended.rewrap.finish_time == NOW
    assert keys.rewraps.running() == []
    assert keys.rewraps.claim(rewrap.name, 2, NOW) is None
    with keys.read() as tx:
        assert tx.versions.count_by_master_key_version(DEMO) == {2: 6}
        assert tx.versions.count_by_master_key_version(ProjectName("other")) == {1: 1}


def test_moving_changes_the_wrapped_key_and_the_revision_and_nothing_else(
    keys: SqlDatabase,
) -> None:
    before = stored(keys, version(1).name)
    batch = batch_of(keys, begun(keys))
    settle(keys, batch)
    after = stored(keys, version(1).name)
    item = next(item for item in batch.items if item.version == before.name)
    assert after == replace(
        before, wrapped_key=moved(item).wrapped_key, revision=before.revision + 1
    )


def test_f59_what_changed_meanwhile_wins(keys: SqlDatabase) -> None:
    """Destroyed, and rewrapped by somebody else, after the batch was claimed."""
    rewrap = begun(keys)
    batch = batch_of(keys, rewrap)
    newer = WrappedDataKey("vault:v3:elsewhere", 3)
    with keys.write() as tx:
        tx.versions.update(version(1).expire())
        tx.versions.update(replace(version(2), wrapped_key=newer, revision=1))
    assert settle(keys, batch) == 3
    assert stored(keys, version(1).name).wrapped_key == NO_DATA_KEY
    assert stored(keys, version(2).name).wrapped_key == newer
    ended = keys.rewraps.claim(rewrap.name, 10, NOW)
    assert isinstance(ended, Finished)
    assert (ended.rewrap.total, ended.rewrap.rewrapped, ended.rewrap.left) == (5, 3, 0)


def test_f59_a_change_of_state_meanwhile_loses_nothing(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    batch = batch_of(keys, rewrap)
    with keys.write() as tx:
        tx.versions.update(version(1).finalize(PIN, NOW))
    assert settle(keys, batch) == 5
    after = stored(keys, version(1).name)
    assert (after.state, after.wrapped_key.master_key_version) == (VersionState.ENABLED, 2)
    assert after.revision == 2


def test_what_comes_in_behind_is_found_before_it_ends(keys: SqlDatabase) -> None:
    """A publisher who got its data key before the rotation, and stores it now."""
    rewrap = begun(keys)
    first = batch_of(keys, rewrap)
    with keys.write() as tx:
        tx.versions.insert(version(9, name=VersionName("demo", "eye", 1)))
    assert isinstance(keys.rewraps.claim(rewrap.name, 10, NOW), NothingYet)
    settle(keys, first)
    late = batch_of(keys, rewrap)
    assert [str(item.version) for item in late.items] == ["projects/demo/models/eye/versions/1"]
    settle(keys, late)
    assert isinstance(keys.rewraps.claim(rewrap.name, 10, NOW), Finished)


def test_f59_who_never_comes_back_loses_its_claim_and_nothing_else(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    lost = batch_of(keys, rewrap, 4)
    kept = batch_of(keys, rewrap, 4)
    settle(keys, kept)
    just_before = CLAIM_FOR.total_seconds() - 1
    assert isinstance(
        keys.rewraps.claim(rewrap.name, 4, NOW + timedelta(seconds=just_before)), NothingYet
    )
    after = CLAIM_FOR.total_seconds()
    # Given out again, in whatever pieces the next ones ask for.
    again = [batch_of(keys, rewrap, 3, after), batch_of(keys, rewrap, 3, after)]
    assert [len(batch.items) for batch in again] == [3, 1]
    assert [item for batch in again for item in batch.items] == list(lost.items)
    assert [settle(keys, batch) for batch in again] == [3, 1]
    # It comes back after all: what it had found out is not swapped in twice.
    assert settle(keys, lost) == 0
    ended = keys.rewraps.claim(rewrap.name, 4, NOW)
    assert isinstance(ended, Finished)
    assert ended.rewrap.rewrapped == 5


def test_a_batch_given_back_is_given_out_at_once(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    batch = batch_of(keys, rewrap)
    part = replace(batch, items=batch.items[:2])
    assert settle(keys, part, whole=False) == 2
    rest = batch_of(keys, rewrap)
    assert list(rest.items) == list(batch.items[2:])


def test_failures_are_named_once_and_do_not_hold_it_up(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    batch = batch_of(keys, rewrap)
    bad = [batch.items[0], batch.items[3]]
    settle(keys, batch, failed=bad)
    ended = keys.rewraps.claim(rewrap.name, 10, NOW)
    assert isinstance(ended, Finished)
    assert (ended.rewrap.rewrapped, ended.rewrap.failed, ended.rewrap.left) == (3, 2, 0)
    named = [RewrapFailure(item.version, "KEY_RECORD_CORRUPT") for item in bad]
    assert keys.rewraps.failures(rewrap.name, 10) == named
    assert keys.rewraps.failures(rewrap.name, 1) == named[:1]
    again = begun(keys)  # another one tries them again
    assert (again.total, again.name != rewrap.name) == (2, True)
    assert list(batch_of(keys, again).items) == bad


def test_paused_nothing_is_given_out(keys: SqlDatabase) -> None:
    rewrap = begun(keys)
    batch = batch_of(keys, rewrap, 2)
    paused = keys.rewraps.change(rewrap.name, lambda found: found.pause(NOW))
    assert paused is not None
    assert paused.state is RewrapState.PAUSED
    assert keys.rewraps.claim(rewrap.name, 2, NOW) is None
    assert keys.rewraps.running() == []
    assert settle(keys, batch) == 2  # what was in hand ends
    keys.rewraps.change(rewrap.name, lambda found: found.resume(NOW))
    assert len(batch_of(keys, rewrap).items) == 3
    missing = replace(rewrap.name, rewrap="f" * 32)
    assert keys.rewraps.change(missing, lambda found: found) is None
    assert keys.rewraps.claim(missing, 2, NOW) is None


def test_what_is_done_is_neither_paused_nor_resumed(keys: SqlDatabase) -> None:
    rewrap = begun(keys, target=1)
    assert isinstance(keys.rewraps.claim(rewrap.name, 2, NOW), Finished)
    for change in (Rewrap.pause, Rewrap.resume):
        with pytest.raises(RewrapEnded):
            keys.rewraps.change(rewrap.name, lambda found, change=change: change(found, NOW))  # type: ignore[misc]


def test_the_rate_holds_for_all_together(keys: SqlDatabase) -> None:
    rewrap = begun(keys, keys_per_second=20)
    assert len(batch_of(keys, rewrap).items) == 2  # a tenth of a second's worth
    waiting = keys.rewraps.claim(rewrap.name, 10, NOW)
    assert waiting == NothingYet(timedelta(seconds=0.1))
    assert len(batch_of(keys, rewrap, after_s=0.1).items) == 2
    assert keys.rewraps.claim(rewrap.name, 10, NOW + timedelta(seconds=0.15)) == NothingYet(
        timedelta(seconds=0.05)
    )


def test_many_workers_share_it_without_doing_it_twice(keys: SqlDatabase) -> None:
    with keys.write() as tx:
        for number in range(100, 400):
            tx.versions.insert(version(number))
    rewrap = begun(keys)
    seen: list[str] = []
    lock = threading.Lock()

    def work() -> int:
        count = 0
        while True:
            got = keys.rewraps.claim(rewrap.name, 7, NOW)
            if isinstance(got, RewrapBatch):
                with lock:
                    seen.extend(item.uid for item in got.items)
                count += settle(keys, got)
            elif not isinstance(got, NothingYet):
                return count

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work) for _ in range(4)]
        assert sum(future.result() for future in futures) == 305
    assert len(seen) == len(set(seen)) == 305
