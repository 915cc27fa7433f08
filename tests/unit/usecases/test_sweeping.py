"""Objects that no version uses are deleted after a grace time, and nothing else ever is."""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from pathlib import Path

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.errors import AuditUnavailable, StorageUnavailable
from kms_service.domain.names import ModelName
from kms_service.usecases.sweep_orphans import MOST_ORPHANS, SweepOrphans
from tests.support.usecase_fakes import ManualClock, caller
from tests.unit.usecases.world import World

GRACE = timedelta(days=14)
MODEL = ModelName("demo", "face")


@pytest.fixture
def sweep(world: World) -> SweepOrphans:
    return SweepOrphans(
        database=world.database,
        store=world.store,
        audit=world.audit,
        clock=world.clock,
        grace=GRACE,
    )


def stored(world: World, artifact_id: str, age: timedelta, *, published: bool = True) -> None:
    """An object, or an upload, that was last written so long before the world's now."""
    with world.store.resume(artifact_id, world.store.stored_bytes(artifact_id) or 0) as upload:
        upload.append(b"content")
        upload.commit()
    if published:
        world.store.publish(artifact_id)
    aged(world.clock, world.artifacts, artifact_id, age)


def aged(clock: ManualClock, store: Path, artifact_id: str, age: timedelta) -> None:
    (file,) = store.rglob(artifact_id)
    written = (clock.now() - age).timestamp()
    os.utime(file, (written, written))


@pytest.mark.parametrize("published", [True, False])
def test_f50_an_orphan_is_deleted_once_its_grace_is_over(
    world: World, sweep: SweepOrphans, published: bool
) -> None:
    orphan = secrets.token_hex(16)
    stored(world, orphan, GRACE - timedelta(minutes=1), published=published)
    assert sweep() == 0
    world.clock.advance(timedelta(minutes=2))
    world.audit.take()

    assert sweep() == 1

    assert world.store.stored_bytes(orphan) is None
    (record,) = world.audit.take()
    assert (record.event, record.outcome) == ("SweepOrphan", Outcome.OK)
    assert record.details == {"artifact_id": orphan}
    assert sweep() == 0


def test_f50_what_a_version_uses_is_never_swept(world: World, sweep: SweepOrphans) -> None:
    world.publisher()
    enabled = world.publish(MODEL).version.version
    pending = world.create_version(caller("publisher"), MODEL).version.version
    for artifact_id in (enabled.artifact_id, pending.artifact_id):
        if world.store.stored_bytes(artifact_id) is None:
            stored(world, artifact_id, timedelta(0), published=False)
        aged(world.clock, world.artifacts, artifact_id, timedelta(days=4000))
    assert sweep() == 0
    assert world.store.deleted == []


def test_what_was_uploaded_into_an_expired_version_goes(world: World, sweep: SweepOrphans) -> None:
    world.publisher()
    version = world.create_version(caller("publisher"), MODEL).version.version
    world.clock.advance(world.pending_ttl + timedelta(seconds=1))
    assert world.expire_pending() == 1
    stored(world, version.artifact_id, 2 * GRACE)  # by a publisher with credentials of its own
    assert sweep() == 1
    assert world.store.stored_bytes(version.artifact_id) is None


def test_f60_a_store_that_is_hardly_this_databases_is_left_alone(
    world: World, sweep: SweepOrphans
) -> None:
    for _ in range(MOST_ORPHANS + 1):
        stored(world, secrets.token_hex(16), 2 * GRACE)
    with pytest.raises(StorageUnavailable, match="Nothing was deleted"):
        sweep()
    assert world.store.deleted == []


def test_f61_without_a_record_nothing_is_deleted(world: World, sweep: SweepOrphans) -> None:
    orphan = secrets.token_hex(16)
    stored(world, orphan, 2 * GRACE)
    world.audit.broken = lambda record: record.event == "SweepOrphan"
    with pytest.raises(AuditUnavailable):
        sweep()
    assert world.store.stored_bytes(orphan) is not None
