"""Rekey: its successor is finalized, a version disabled, its aliases moved: all or nothing."""

from __future__ import annotations

import pytest
from modelkms_api.artifact import PinDigest, parse_clear_prefix

from kms_service.domain.catalogue import ArtifactPin, Version, VersionState
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    AuditUnavailable,
    InvalidField,
    ModelNotFoundOrDenied,
    VersionDestroyScheduled,
    VersionDisabled,
    VersionNotFinalized,
)
from kms_service.domain.names import AliasName, ModelName, VersionName
from tests.support.usecase_fakes import Waiting, caller
from tests.unit.usecases.world import World

MODEL = ModelName("demo", "face")
V1, V2 = (VersionName("demo", "face", number) for number in (1, 2))
PUBLISHER, READER = caller("publisher"), caller("reader")


@pytest.fixture
def rekeying(world: World) -> World:
    """Version 1 is @stable and @canary; version 2 is uploaded and PENDING."""
    world.publisher()
    world.reader()
    world.publish(MODEL)
    world.set_alias(PUBLISHER, AliasName("demo", "face", "canary"), V1)
    world.create_version(PUBLISHER, MODEL)
    return world


def finalize(world: World, rekey_of: VersionName | None = V1) -> None:
    version = world.version(V2)
    assert version is not None
    pin = version.pin or _pin_of_stored(world, version)
    world._finalize_version(PUBLISHER, V2, pin, False, liveness=Waiting(), rekey_of=rekey_of)


def _pin_of_stored(world: World, version: Version) -> ArtifactPin:
    """Of what is uploaded; uploads it, if nothing is."""
    length = world.store.stored_bytes(version.artifact_id)
    if length is None:
        return world.upload_whole(version)
    stored = b"".join(world.store.read(version.artifact_id, 0, length))
    digest = PinDigest()
    digest.update(stored)
    return ArtifactPin(length, parse_clear_prefix(stored).floe_header_tag(stored), digest.digest())


def aliases(world: World) -> dict[str, int]:
    with world.database.read() as tx:
        found = tx.aliases.of_versions(MODEL)
    return {alias: number for number, names in found.items() for alias in names}


def states(world: World) -> tuple[VersionState, VersionState]:
    first, second = world.version(V1), world.version(V2)
    assert first is not None
    assert second is not None
    return first.state, second.state


def test_all_of_it_at_once(rekeying: World) -> None:
    held = rekeying.lease(READER, V1)
    rekeying.audit.take()
    finalize(rekeying)
    assert states(rekeying) == (VersionState.DISABLED, VersionState.ENABLED)
    assert aliases(rekeying) == {"stable": 2, "canary": 2}
    assert rekeying.live_leases() == 0
    with pytest.raises(VersionDisabled):
        rekeying.lease(READER, V1)
    first, second = rekeying.version(V1), rekeying.version(V2)
    assert first is not None
    assert second is not None
    assert rekeying.unwrap(first) != rekeying.unwrap(second)
    record = next(each for each in rekeying.audit.records if each.event == "FinalizeVersion")
    assert record.details["rekey_of"] == str(V1)
    assert record.details["rekeyed_uid"] == held.version.version.uid
    assert record.details["rekeyed_state"] == "DISABLED"
    assert record.details["aliases_moved"] == "canary,stable"


def test_once_more_moves_nothing(rekeying: World) -> None:
    finalize(rekeying)
    rekeying.policy.grant("security", Action.ENABLE_VERSION)
    rekeying.states.enable(caller("security"), V1)
    rekeying.set_alias(PUBLISHER, AliasName("demo", "face", "canary"), V1)
    finalize(rekeying)
    assert states(rekeying) == (VersionState.ENABLED, VersionState.ENABLED)
    assert aliases(rekeying) == {"stable": 2, "canary": 1}


def test_only_by_who_may_rekey(rekeying: World) -> None:
    rekeying.policy.withdraw("publisher", Action.REKEY_VERSION)
    with pytest.raises(ModelNotFoundOrDenied):
        finalize(rekeying)
    assert states(rekeying) == (VersionState.ENABLED, VersionState.PENDING)
    finalize(rekeying, None)
    assert aliases(rekeying) == {"stable": 1, "canary": 1}


@pytest.mark.parametrize(
    "old", [V2, VersionName("demo", "other", 1), VersionName("other", "face", 1)], ids=str
)
def test_another_version_of_the_same_model(rekeying: World, old: VersionName) -> None:
    with pytest.raises(InvalidField):
        finalize(rekeying, old)


def test_what_cannot_be_disabled_cannot_be_rekeyed(rekeying: World) -> None:
    pending = rekeying.create_version(PUBLISHER, MODEL).version.version
    with pytest.raises(VersionNotFinalized):
        finalize(rekeying, pending.name)
    rekeying.security("security")
    rekeying.destroy.schedule(caller("security"), V1, None, False)
    with pytest.raises(VersionDestroyScheduled):
        finalize(rekeying)
    with pytest.raises(ModelNotFoundOrDenied):
        finalize(rekeying, VersionName("demo", "face", 99))
    assert states(rekeying) == (VersionState.DESTROY_SCHEDULED, VersionState.PENDING)


def test_without_a_record_nothing_of_it_happens(rekeying: World) -> None:
    rekeying.audit.broken = lambda record: record.event == "FinalizeVersion"
    with pytest.raises(AuditUnavailable):
        finalize(rekeying)
    assert states(rekeying) == (VersionState.ENABLED, VersionState.PENDING)
    assert aliases(rekeying) == {"stable": 1, "canary": 1}
