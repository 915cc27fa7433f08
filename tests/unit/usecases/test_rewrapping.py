"""Rewrapping: what officers may ask, what workers do, what happens when Vault is away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.catalogue import Version, WrappedDataKey
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    DeadlineExceeded,
    InvalidField,
    ModelNotFoundOrDenied,
    RewrapEnded,
    ServiceError,
    VaultUnavailable,
)
from kms_service.domain.names import ModelName, ProjectName, RewrapName
from kms_service.domain.rewrapping import RewrapState
from kms_service.usecases.watch_master_keys import MasterKeysSeen, WatchMasterKeys
from tests.support.usecase_fakes import Waiting, caller
from tests.unit.usecases.world import World

DEMO = ProjectName("demo")
FACE = ModelName("demo", "face")
KEY = "modelkms-demo"
VERSIONS = 5


def forever() -> bool:
    return False


@pytest.fixture
def published(world: World) -> list[Version]:
    """Five versions whose data keys are under master-key version 1; there is a version 2."""
    world.publisher()
    versions = [world.publish(FACE).version.version for _ in range(VERSIONS)]
    world.vault.rotate(KEY)
    return versions


def under(world: World) -> dict[int, int]:
    with world.database.read() as tx:
        return tx.versions.count_by_master_key_version(DEMO)


def test_every_key_moves_and_still_opens(world: World, published: list[Version]) -> None:
    keys = [world.unwrap(version) for version in published]
    started = world.rewrap.start(world.security(), DEMO, 0)
    assert (started.rewrap.total, started.rewrap.target_version) == (VERSIONS, 2)
    assert world.rewrap_worker(forever) == VERSIONS
    assert under(world) == {2: VERSIONS}
    assert world.rewrap_counts.counts["rewrapped"] == VERSIONS
    for version, key in zip(published, keys, strict=True):
        now = world.version(version.name)
        assert now is not None
        assert world.unwrap(now) == key
    ended = world.rewrap.get(world.security(), started.rewrap.name).rewrap
    assert (ended.state, ended.rewrapped, ended.left) == (RewrapState.DONE, VERSIONS, 0)
    assert ended == world.rewrap.latest(world.security(), DEMO).rewrap


def test_it_is_recorded_who_wanted_it_and_how_it_ended(
    world: World, published: list[Version]
) -> None:
    world.rewrap.start(world.security(), DEMO, 0)
    world.rewrap_worker(forever)
    asked, ended = (record for record in world.audit.records if "ewrap" in record.event)
    assert (asked.event, asked.outcome, asked.principal) == (
        "RewrapDataKeys",
        Outcome.OK,
        caller("security").principal.id,
    )
    assert (ended.event, ended.outcome) == ("RewrapFinished", Outcome.OK)
    assert ended.details["rewrapped"] == str(VERSIONS)


def test_who_is_not_permitted_learns_and_starts_nothing(
    world: World, published: list[Version]
) -> None:
    name = RewrapName("demo", "0" * 32)
    calls = world.vault.calls
    for act in (
        lambda: world.rewrap.start(caller("stranger"), DEMO, 0),
        lambda: world.rewrap.get(caller("stranger"), name),
        lambda: world.rewrap.latest(caller("stranger"), DEMO),
        lambda: world.rewrap.pause(caller("stranger"), name),
        lambda: world.rewrap.resume(caller("stranger"), name),
        lambda: list(world.rewrap.watch(caller("stranger"), name, timedelta(0), Waiting())),
        lambda: world.rewrap.start(world.security(), ProjectName("none"), 0),
        lambda: world.rewrap.get(world.security(), name),
        lambda: world.rewrap.latest(world.security(), DEMO),
    ):
        with pytest.raises(ModelNotFoundOrDenied):
            act()
    assert world.vault.calls == calls
    assert world.rewraps.running() == []


@pytest.mark.parametrize("rate", [-1, 1_000_001])
def test_rates_that_are_none(world: World, rate: int) -> None:
    with pytest.raises(InvalidField):
        world.rewrap.start(world.security(), DEMO, rate)


def test_looking_does_not_permit_starting(world: World, published: list[Version]) -> None:
    world.policy.grant("auditor", Action.GET_MASTER_KEY)
    with pytest.raises(ModelNotFoundOrDenied):
        world.rewrap.start(caller("auditor"), DEMO, 0)


def test_pause_and_resume(world: World, published: list[Version]) -> None:
    security = world.security()
    name = world.rewrap.start(security, DEMO, 0).rewrap.name
    assert world.rewrap.pause(security, name).rewrap.state is RewrapState.PAUSED
    assert world.rewrap_worker(forever) == 0
    assert under(world) == {1: VERSIONS}
    assert world.rewrap.resume(security, name).rewrap.state is RewrapState.RUNNING
    assert world.rewrap_worker(forever) == VERSIONS
    with pytest.raises(RewrapEnded):
        world.rewrap.pause(security, name)


def test_starting_again_resumes_under_the_new_rate(world: World, published: list[Version]) -> None:
    security = world.security()
    first = world.rewrap.start(security, DEMO, 10).rewrap
    world.rewrap.pause(security, first.name)
    again = world.rewrap.start(security, DEMO, 0).rewrap
    assert (again.name, again.state, again.keys_per_second) == (
        first.name,
        RewrapState.RUNNING,
        0,
    )


def test_a_stopping_service_ends_between_batches(world: World, published: list[Version]) -> None:
    world.rewrap.start(world.security(), DEMO, 0)
    assert world.rewrap_worker(lambda: True) == 0
    assert under(world) == {1: VERSIONS}


def test_an_outage_gives_the_batch_back(world: World, published: list[Version]) -> None:
    world.rewrap.start(world.security(), DEMO, 0)
    world.vault.fail_with = VaultUnavailable
    with pytest.raises(VaultUnavailable):
        world.rewrap_worker(forever)
    world.vault.fail_with = None
    assert world.rewrap_worker(forever) == VERSIONS  # at once: no claim has to run out


def test_an_outage_in_the_middle_keeps_what_was_done(
    world: World, published: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.vault.rewrap

    def breaks_off(
        master_key: str, keys: Sequence[tuple[WrappedDataKey, bytes]]
    ) -> Sequence[WrappedDataKey | ServiceError]:
        return [*whole(master_key, keys[:2]), *[VaultUnavailable()] * (len(keys) - 2)]

    world.rewrap.start(world.security(), DEMO, 0)
    monkeypatch.setattr(world.vault, "rewrap", breaks_off)
    with pytest.raises(VaultUnavailable):
        world.rewrap_worker(forever)
    assert under(world) == {1: VERSIONS - 2, 2: 2}
    monkeypatch.undo()
    assert world.rewrap_worker(forever) == VERSIONS - 2


def test_f40_a_key_that_is_damaged_is_named_and_the_others_move(
    world: World, published: list[Version]
) -> None:
    damaged = published[2]
    with world.database.write() as tx:
        wrapped = WrappedDataKey(damaged.wrapped_key.ciphertext[:-8] + "AAAAAAA=", 1)
        tx.versions.update(replace(damaged, wrapped_key=wrapped, revision=damaged.revision + 1))
    name = world.rewrap.start(world.security(), DEMO, 0).rewrap.name
    assert world.rewrap_worker(forever) == VERSIONS - 1
    view = world.rewrap.get(world.security(), name)
    assert [(failure.version, failure.reason) for failure in view.failures] == [
        (damaged.name, "KEY_RECORD_CORRUPT")
    ]
    assert (view.rewrap.failed, view.rewrap.done) == (1, True)
    assert under(world) == {1: 1, 2: VERSIONS - 1}
    # A further one tries it again, and it alone.
    assert world.rewrap.start(world.security(), DEMO, 0).rewrap.total == 1


def test_f41_keys_under_an_unusable_version_are_not_called_corrupt_and_heal(
    world: World, published: list[Version]
) -> None:
    world.vault.set_min_decryption_version(KEY, 2)
    name = world.rewrap.start(world.security(), DEMO, 0).rewrap.name
    world.rewrap_worker(forever)
    failures = world.rewrap.get(world.security(), name).failures
    assert {failure.reason for failure in failures} == {"WRAPPING_VERSION_UNUSABLE"}
    assert len(failures) == VERSIONS
    world.vault.set_min_decryption_version(KEY, 1)
    world.rewrap.start(world.security(), DEMO, 0)
    assert world.rewrap_worker(forever) == VERSIONS


def test_watching_tells_how_it_goes_until_it_is_done(
    world: World, published: list[Version]
) -> None:
    name = world.rewrap.start(world.security(), DEMO, 0).rewrap.name
    watch = world.rewrap.watch(world.security(), name, timedelta(milliseconds=10), Waiting())
    first = next(watch)
    assert (first.rewrap.left, first.remaining) == (VERSIONS, None)
    assert next(watch).keys_per_second == 0
    world.rewrap_worker(forever)
    last = list(watch)[-1]
    assert (last.rewrap.done, last.rewrap.left) == (True, 0)
    assert last.keys_per_second > 0


def test_f28_a_watcher_who_goes_away_holds_nothing(world: World, published: list[Version]) -> None:
    name = world.rewrap.start(world.security(), DEMO, 0).rewrap.name
    watch = world.rewrap.watch(world.security(), name, timedelta(hours=1), Waiting(checks=0))
    next(watch)
    with pytest.raises(DeadlineExceeded):
        next(watch)


# --- what the service notices by itself --------------------------------------------------------


def watching(world: World, *, rewrap: bool = True, days: int = 366) -> WatchMasterKeys:
    return WatchMasterKeys(
        database=world.database,
        rewraps=world.rewraps,
        rewrapper=world.vault,
        audit=world.audit,
        clock=world.clock,
        rewrap=rewrap,
        keys_per_second=0,
        max_age=timedelta(days=days),
    )


def test_a_new_master_key_version_is_noticed_and_rewrapped(
    world: World, published: list[Version]
) -> None:
    watch = watching(world)
    assert watch().started == 1
    seen = watch()  # it runs already
    assert (seen.started, seen.keys_under_old_versions) == (0, VERSIONS)
    assert world.rewrap_worker(forever) == VERSIONS
    seen = watch()
    assert (seen.started, seen.keys_under_old_versions) == (0, 0)
    assert world.audit.records[-2].details["started_by"] == "modelkms-server"


def test_it_is_only_told_where_that_is_configured(world: World, published: list[Version]) -> None:
    seen = watching(world, rewrap=False)()
    assert (seen.started, seen.keys_under_old_versions) == (0, VERSIONS)
    assert world.rewraps.running() == []


def test_a_paused_or_just_failed_one_is_not_started_again(
    world: World, published: list[Version]
) -> None:
    security = world.security()
    name = world.rewrap.start(security, DEMO, 0).rewrap.name
    world.rewrap.pause(security, name)
    assert watching(world)().started == 0
    world.rewrap.resume(security, name)
    world.vault.set_min_decryption_version(KEY, 2)
    world.rewrap_worker(forever)
    assert watching(world)().started == 0
    world.clock.advance(timedelta(hours=7))
    assert watching(world)().started == 1


def test_overdue_rotations_and_unreadable_master_keys_are_counted(
    world: World, published: list[Version]
) -> None:
    assert watching(world, rewrap=False, days=36_500)().rotation_overdue == 0
    assert watching(world, rewrap=False, days=1)().rotation_overdue == 1
    world.vault.fail_with = VaultUnavailable
    assert watching(world)() == MasterKeysSeen(unreadable=1)
