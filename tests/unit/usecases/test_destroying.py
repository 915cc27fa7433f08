"""Destroying a version: two officers, a wait that no clock shortens, nothing left of its key."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kms_service.domain.audit import Outcome
from kms_service.domain.catalogue import NO_DATA_KEY, Version, VersionState, WrappedDataKey
from kms_service.domain.decisions import Action
from kms_service.domain.destruction import Tombstone
from kms_service.domain.errors import (
    AuditUnavailable,
    InvalidField,
    ModelNotFoundOrDenied,
    SecondOfficerRequired,
    ServiceError,
    StateUnavailable,
    VaultUnavailable,
    VersionDestroyed,
    VersionDestroyScheduled,
    VersionDisabled,
    VersionNotFinalized,
    VersionNotScheduled,
)
from kms_service.domain.names import ModelName, VersionName
from tests.support.usecase_fakes import caller
from tests.unit.usecases.real_parts import migrated_database
from tests.unit.usecases.world import Client, World

MODEL = ModelName("demo", "face")
V1 = VersionName("demo", "face", 1)
DAY = timedelta(days=1)
READER, FIRST, SECOND = caller("reader"), caller("security"), caller("witness")


@pytest.fixture
def published(world: World) -> World:
    world.publisher()
    world.reader()
    world.security("security")
    world.policy.grant("witness", Action.CONFIRM_DESTROY_VERSION)
    world.publish(MODEL)
    world.audit.take()
    return world


def stored(world: World) -> Version:
    version = world.version(V1)
    assert version is not None
    return version


def decide(world: World, *, wait: timedelta = DAY, delete_artifact: bool = False) -> None:
    world.destroy.schedule(FIRST, V1, wait, delete_artifact)
    world.destroy.confirm(SECOND, V1)


def raw_files(world: World) -> bytes:
    """Every byte of the database's files."""
    files = sorted(world.folder.glob("state.db*"))
    assert files
    return b"".join(file.read_bytes() for file in files)


# --- scheduling -----------------------------------------------------------------------------------


def test_scheduling_ends_leases_and_issuing(published: World) -> None:
    held = published.lease(READER, V1)
    view = published.destroy.schedule(FIRST, V1, None, False)
    destruction = view.version.destruction
    assert destruction is not None
    assert destruction.due.time == published.clock.now() + 30 * DAY
    assert published.live_leases() == 0
    with pytest.raises(VersionDestroyScheduled):
        published.lease(READER, V1)
    with pytest.raises(ServiceError):
        published.renew(READER, held.lease)


def test_a_wait_under_a_day_is_refused(published: World) -> None:
    with pytest.raises(InvalidField):
        published.destroy.schedule(FIRST, V1, DAY - timedelta(seconds=1), False)
    assert stored(published).state is VersionState.ENABLED


def test_each_act_needs_its_own_permit(published: World) -> None:
    acts: list[Callable[[], object]] = [
        lambda: published.destroy.schedule(READER, V1, None, False),
        lambda: published.destroy.schedule(SECOND, V1, None, False),
        lambda: published.destroy.confirm(READER, V1),
        lambda: published.destroy.restore(READER, V1),
        lambda: published.destroy.restore(SECOND, V1),
    ]
    for act in acts:
        with pytest.raises(ModelNotFoundOrDenied):
            act()
    assert stored(published).state is VersionState.ENABLED


def test_states_are_told_after_a_permit(published: World) -> None:
    pending = published.create_version(caller("publisher"), MODEL).version.version
    with pytest.raises(VersionNotFinalized):
        published.destroy.schedule(FIRST, pending.name, None, False)
    with pytest.raises(VersionNotScheduled):
        published.destroy.confirm(SECOND, V1)
    with pytest.raises(VersionNotScheduled):
        published.destroy.restore(FIRST, V1)
    with pytest.raises(ModelNotFoundOrDenied):
        published.destroy.schedule(FIRST, VersionName("demo", "face", 99), None, False)


def test_who_scheduled_it_cannot_confirm_it_whatever_policy_says(published: World) -> None:
    published.destroy.schedule(FIRST, V1, None, False)
    with pytest.raises(SecondOfficerRequired):
        published.destroy.confirm(FIRST, V1)
    published.clock.advance(400 * DAY)
    assert published.shred() == 0
    assert stored(published).state is VersionState.DESTROY_SCHEDULED


def test_every_act_is_recorded_with_who_and_what(published: World) -> None:
    decide(published)
    published.destroy.restore(FIRST, V1)
    records = published.audit.take()
    assert [record.event for record in records] == [
        "DestroyVersion",
        "ConfirmDestroyVersion",
        "RestoreVersion",
    ]
    assert [record.details["state"] for record in records] == [
        "DESTROY_SCHEDULED",
        "DESTROY_SCHEDULED",
        "DISABLED",
    ]
    assert [record.details["revision"] for record in records] == ["2", "3", "4"]
    assert records[1].details["scheduled_by"] == FIRST.principal.id


# --- F60 ------------------------------------------------------------------------------------------


def test_f60_undo_works_until_it_is_due(published: World) -> None:
    decide(published)
    published.clock.advance(DAY - timedelta(microseconds=1))
    assert published.shred() == 0
    assert published.destroy.restore(FIRST, V1).version.state is VersionState.DISABLED
    with pytest.raises(VersionDisabled):
        published.lease(READER, V1)
    published.states.enable(FIRST, V1)
    client = Client()
    leased = published.lease(READER, V1, client=client)
    assert client.open_leased(leased, READER) == published.unwrap(stored(published))


def test_f60_what_is_due_cannot_be_undone_any_more(published: World) -> None:
    decide(published)
    published.clock.advance(DAY)
    with pytest.raises(VersionDestroyed):
        published.destroy.restore(FIRST, V1)
    assert published.shred() == 1


def test_f60_destroyed_leaves_no_key_anywhere(published: World) -> None:
    before = stored(published)
    published.lease(READER, V1)
    fragment = before.wrapped_key.ciphertext.encode()
    assert fragment in raw_files(published)
    decide(published)
    published.clock.advance(DAY)
    published.audit.take()
    assert published.shred() == 1

    after = stored(published)
    assert (after.state, after.wrapped_key) == (VersionState.DESTROYED, NO_DATA_KEY)
    assert fragment.removeprefix(b"vault:v1:")[:16] not in raw_files(published)
    assert published.tombstones.kept[before.uid].version == str(V1)
    for act in (
        lambda: published.lease(READER, V1),
        lambda: published.states.enable(FIRST, V1),
        lambda: published.destroy.restore(FIRST, V1),
        lambda: published.destroy.schedule(FIRST, V1, None, False),
    ):
        with pytest.raises(VersionDestroyed):
            act()
    assert published.store.stored_bytes(before.artifact_id)
    record = published.audit.records[0]
    assert (record.event, record.outcome) == ("ShredVersion", Outcome.OK)
    assert record.details["confirmed_by"] == SECOND.principal.id
    assert record.details["artifact"] == "kept"


def test_f60_the_artifact_goes_if_asked(published: World) -> None:
    artifact_id = stored(published).artifact_id
    decide(published, delete_artifact=True)
    published.clock.advance(DAY)
    published.shred()
    assert published.store.stored_bytes(artifact_id) is None
    assert published.audit.records[-1].details["artifact"] == "deleted"


def test_f60_no_residue_in_pages_that_were_balanced(published: World) -> None:
    """Rows that grow split their page, and the page keeps a copy in its free space: what
    secure_delete zeroes later is only the row that is in use."""
    template, numbers = stored(published), list(range(2, 3002))
    chance = random.Random(1)
    chance.shuffle(numbers)
    versions = {
        number: replace(
            template,
            name=replace(V1, number=number),
            uid=f"{number:032x}",
            request_id=str(number),
            artifact_id=f"{number:032x}",
            wrapped_key=WrappedDataKey(f"vault:v1:{secrets.token_hex(40)}", 1),
            publisher="x" * chance.randrange(30),
            pin=None,
        )
        for number in sorted(numbers)
    }
    with published.database.write() as tx:
        for version in versions.values():
            tx.versions.insert(version)
    with published.database.write() as tx:
        for number in numbers:
            grown = replace(
                versions[number],
                publisher=versions[number].publisher + "y" * chance.randrange(60),
                pin=template.pin,
                revision=template.revision + 1,
            )
            tx.versions.update(grown)
    destroyed = set(numbers[:1500])
    with published.database.write() as tx:
        for number in destroyed:
            gone = replace(
                versions[number],
                state=VersionState.DESTROYED,
                wrapped_key=NO_DATA_KEY,
                revision=template.revision + 2,
            )
            tx.versions.update(gone)
    assert published.database.scrub()
    assert not published.database.scrub()
    raw = raw_files(published)
    found = {
        number
        for number, version in versions.items()
        if version.wrapped_key.ciphertext[20:52].encode() in raw
    }
    assert found == set(numbers) - destroyed


@pytest.mark.parametrize("days", [1, 30, 10_000])
def test_f60_a_clock_set_forward_shortens_no_wait(published: World, days: int) -> None:
    decide(published, wait=30 * DAY)
    published.clock.jump(days * DAY)
    published.clock.advance(29 * DAY)
    assert published.shred() == 0
    assert published.destroy.restore(FIRST, V1).version.state is VersionState.DISABLED


def test_f60_destroy_races_with_a_lease(published: World) -> None:
    """Scheduled while Vault unwraps: the lease does not commit."""
    published.master_keys.meanwhile = lambda: decide(published)
    with pytest.raises(VersionDestroyScheduled):
        published.lease(READER, V1)
    assert published.live_leases() == 0


@pytest.mark.parametrize("when", ["tombstone", "write", "record", "artifact", "scrub"])
def test_f60_broken_off_anywhere_it_is_finished_the_next_time(
    published: World, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment = stored(published).wrapped_key.ciphertext.encode()
    decide(published, delete_artifact=True)
    published.clock.advance(DAY)

    def fail(*_: object) -> bool:
        raise StateUnavailable

    match when:
        case "tombstone":
            published.tombstones.fail_with = VaultUnavailable
        case "write":
            published.database.fail_writes = [StateUnavailable()]
        case "record":
            published.audit.broken = lambda record: record.event == "ShredVersion"
        case "artifact":
            monkeypatch.setattr(published.store, "delete", fail)
        case "scrub":
            monkeypatch.setattr(published.database, "scrub", fail)
    with pytest.raises((VaultUnavailable, StateUnavailable, AuditUnavailable)):
        published.shred()
    monkeypatch.undo()
    published.tombstones.fail_with = None
    published.audit.broken = lambda record: False
    with pytest.raises(VersionDestroyed):
        published.destroy.restore(FIRST, V1)
    published.shred()
    assert stored(published).state is VersionState.DESTROYED
    assert fragment not in raw_files(published)


def test_f60_a_row_that_was_put_back_gives_no_key(published: World) -> None:
    before = stored(published)
    decide(published)
    published.clock.advance(DAY)
    published.shred()
    with published.database.write() as tx:
        tx.versions.update(replace(before, revision=stored(published).revision + 1))
    assert stored(published).state is VersionState.ENABLED
    with pytest.raises(VersionDestroyed):
        published.lease(READER, V1)
    assert published.live_leases() == 0


def test_a_tombstone_once_written_stays(published: World) -> None:
    tombstone = Tombstone(str(V1), "0" * 32, published.clock.now())
    published.tombstones.write(tombstone)
    published.tombstones.write(replace(tombstone, version="another"))
    assert published.tombstones.kept["0" * 32] == tombstone


# --- in any order ---------------------------------------------------------------------------------


class Destroying(RuleBasedStateMachine):
    """Officers decide, undo, enable and disable, time goes on or is set forward, sweeps run,
    readers ask: in any order."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.folder / str(time.monotonic_ns()), self.folder / "template.db")
        self.world.publisher()
        self.world.reader()
        self.world.security("security")
        self.world.security("witness")
        self.world.publish(MODEL)
        self.fragment = stored(self.world).wrapped_key.ciphertext.encode()
        self.data_key = self.world.unwrap(stored(self.world))
        self.officers: set[str] = set()
        self.served_since = timedelta(0)
        self.destroyed = False

    def teardown(self) -> None:
        self.world.close()

    @rule(who=st.sampled_from([FIRST, SECOND]))
    def schedule(self, who: object) -> None:
        try:
            self.world.destroy.schedule(who, V1, DAY, False)  # type: ignore[arg-type]  # sampled
        except ServiceError:
            return
        self.officers = {who.principal.id}  # type: ignore[attr-defined]
        self.served_since = self.world.clock.served()

    @rule(who=st.sampled_from([FIRST, SECOND]))
    def confirm(self, who: object) -> None:
        try:
            self.world.destroy.confirm(who, V1)  # type: ignore[arg-type]
        except ServiceError:
            return
        self.officers.add(who.principal.id)  # type: ignore[attr-defined]

    @rule(act=st.sampled_from(["restore", "enable", "disable"]))
    def change(self, act: str) -> None:
        states, destroy = self.world.states, self.world.destroy
        acts = {"restore": destroy.restore, "enable": states.enable, "disable": states.disable}
        try:
            acts[act](FIRST, V1)
        except ServiceError:
            return
        assert not self.destroyed, "a destroyed version changed"
        self.officers = set()

    @rule(hours=st.integers(1, 20), running=st.booleans())
    def wait(self, hours: int, running: bool) -> None:
        clock = self.world.clock
        (clock.advance if running else clock.jump)(timedelta(hours=hours))

    @rule()
    def sweep(self) -> None:
        if self.world.shred():
            assert len(self.officers) == 2, "destroyed on one officer's word"
            assert self.world.clock.served() - self.served_since >= DAY, "destroyed too early"
            self.destroyed = True

    @rule()
    def ask(self) -> None:
        client = Client()
        enabled = stored(self.world).state is VersionState.ENABLED
        try:
            leased = self.world.lease(READER, V1, client=client)
        except ServiceError:
            assert not enabled
            return
        assert enabled
        assert client.open_leased(leased, READER) == self.data_key

    @invariant()
    def destroyed_is_final_and_anything_else_is_whole(self) -> None:
        version = stored(self.world)
        assert (version.state is VersionState.DESTROYED) is self.destroyed
        if self.destroyed:
            assert version.wrapped_key == NO_DATA_KEY
            assert self.fragment not in raw_files(self.world)
            assert version.uid in self.world.tombstones.kept
        else:
            assert self.world.unwrap(version) == self.data_key
            assert not self.world.tombstones.kept


def test_whatever_the_order_destroyed_means_gone_and_anything_else_means_whole(
    tmp_path: Path,
) -> None:
    migrated_database(tmp_path)
    Destroying.folder = tmp_path
    case = Destroying.TestCase
    case.settings = settings(
        max_examples=40,
        stateful_step_count=30,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    case().runTest()
