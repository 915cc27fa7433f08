"""Leases leave the database long after their end; what is judged by them stays."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kms_service.domain.errors import LeaseUsedUp
from kms_service.domain.leases import LeaseBounds
from kms_service.domain.names import ModelName, VersionName
from kms_service.usecases import sweep_leases
from kms_service.usecases.sweep_leases import SweepLeases
from tests.support.usecase_fakes import caller
from tests.unit.usecases.world import World

MODEL = ModelName("demo", "face")
V1 = VersionName("demo", "face", 1)
READER = caller("reader")
KEPT = timedelta(days=30)
HOUR = timedelta(hours=1)


@pytest.fixture
def published(world: World) -> World:
    world.publisher()
    world.reader("reader")
    world.publish(MODEL)
    return world


@pytest.fixture
def sweep(published: World) -> SweepLeases:
    return SweepLeases(database=published.database, clock=published.clock, kept=KEPT)


def stored(world: World) -> set[str]:
    return {str(lease.name) for lease in world.list_leases_past_policy()}


def test_ended_leases_go_after_their_time_and_the_last_one_stays(
    published: World, sweep: SweepLeases
) -> None:
    names = []
    for _ in range(4):
        names.append(str(published.lease(READER, V1).lease.lease.name))
        published.clock.advance(HOUR)
    end = published.lease(READER, V1).lease.lease.expire_time  # the fifth, and the last
    published.clock.advance(KEPT - 3 * HOUR)  # exactly `KEPT` ago, the first one ended
    assert sweep() == 0
    published.clock.advance(timedelta(seconds=1))
    assert sweep() == 1
    assert names[0] not in stored(published)
    assert set(names[1:]) < stored(published)
    published.clock.advance(end + KEPT - published.clock.now() + HOUR)
    assert sweep() == 3
    assert len(stored(published)) == 1
    assert sweep() == 0


def test_many_go_in_small_transactions_and_not_all_at_once(
    published: World, sweep: SweepLeases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_leases, "BATCH", 2)
    monkeypatch.setattr(sweep_leases, "MOST_AT_ONCE", 4)
    for _ in range(8):
        published.lease(READER, V1)
    published.clock.advance(KEPT + 2 * HOUR)
    assert [sweep(), sweep(), sweep()] == [4, 3, 0]


def test_a_one_time_lease_stays_used_up(published: World, sweep: SweepLeases) -> None:
    published.policy.bounds = LeaseBounds(HOUR, HOUR, one_time=True)
    published.lease(READER, V1)
    published.clock.advance(10 * KEPT)
    assert sweep() == 0
    with pytest.raises(LeaseUsedUp):
        published.lease(READER, V1)
