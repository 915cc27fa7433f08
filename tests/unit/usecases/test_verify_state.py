"""F56, F60: rows that were put back are found against the audit log and Vault, and give no key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import NO_DATA_KEY, Version, VersionState
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    VersionDestroyed,
    VersionDisabled,
)
from kms_service.domain.names import ModelName, VersionName
from kms_service.usecases.verify_state import StateReport, VerifyState, recorded_states
from tests.support.usecase_fakes import Waiting, caller
from tests.unit.usecases.world import World

MODEL = ModelName("demo", "face")
V1, V2 = (VersionName("demo", "face", number) for number in (1, 2))
DAY = timedelta(days=1)
READER, SECURITY, WITNESS = caller("reader"), caller("security"), caller("witness")


@pytest.fixture
def published(world: World) -> World:
    world.publisher()
    world.reader()
    world.security("security")
    world.security("witness")
    for _ in range(2):
        world.publish(MODEL)
    return world


def verify(world: World, *, withhold: bool = True, keys: bool = False) -> StateReport:
    records = [_as_read(record) for record in world.audit.records]
    check = VerifyState(
        database=world.database,
        tombstones=world.tombstones,
        rewrapper=world.vault,
        audit=world.audit,
        clock=world.clock,
    )
    return check(recorded_states(records), withhold=withhold, keys=keys)


def _as_read(record: AuditRecord) -> Mapping[str, Any]:
    return {
        "event": record.event,
        "outcome": record.outcome.value,
        "request_id": record.request_id,
        "time": record.time.isoformat(),
        "details": dict(record.details),
    }


def stored(world: World, name: VersionName = V1) -> Version:
    version = world.version(name)
    assert version is not None
    return version


def put_back(world: World, row: Version, revision: int | None = None) -> None:
    """As somebody with SQL would: the row, whatever its revision."""
    now = stored(world, row.name)
    with world.database.write() as tx:
        tx.versions.update(replace(row, revision=now.revision + 1))
    if revision is not None:
        world.execute(f"UPDATE versions SET revision = {revision} WHERE number = {row.name.number}")


def test_what_was_done_is_as_it_must_be(published: World) -> None:
    published.states.disable(SECURITY, V1)
    published.states.enable(SECURITY, V1)
    published.states.disable(SECURITY, V2)
    published.destroy.schedule(SECURITY, V2, DAY, False)
    published.destroy.confirm(WITNESS, V2)
    published.clock.advance(DAY)
    published.shred()
    published.create_version(caller("publisher"), MODEL)
    assert verify(published, keys=True) == StateReport(3, 0, ())


@pytest.mark.parametrize("revision", [None, 1, 99])
def test_f56_an_old_row_put_back_gives_no_key(published: World, revision: int | None) -> None:
    """DISABLED → ENABLED, with a revision higher, its own, or any."""
    before = stored(published)
    published.states.disable(SECURITY, V1)
    put_back(published, before, revision)
    (finding,) = verify(published, withhold=False).findings
    assert (finding.version, finding.withheld) == (V1, "")
    published.lease(READER, V1)  # told only: nothing has changed yet

    (finding,) = verify(published).findings
    assert (finding.version, finding.withheld) == (V1, "disabled")
    with pytest.raises(VersionDisabled):
        published.lease(READER, V1)
    assert published.live_leases() == 0
    assert "WithholdVersion" in {record.event for record in published.audit.records}
    assert verify(published).findings == ()
    published.states.enable(SECURITY, V1)
    published.lease(READER, V1)
    assert verify(published).findings == ()


def test_f60_a_destroyed_version_put_back_is_destroyed_again(published: World) -> None:
    before = stored(published)
    published.destroy.schedule(SECURITY, V1, DAY, False)
    published.destroy.confirm(WITNESS, V1)
    published.clock.advance(DAY)
    published.shred()
    put_back(published, before)
    (finding,) = verify(published).findings
    assert "tombstone" in finding.what
    assert finding.withheld == "destroyed again"
    assert stored(published).wrapped_key == NO_DATA_KEY
    with pytest.raises(VersionDestroyed):
        published.lease(READER, V1)
    assert before.wrapped_key.ciphertext.encode() not in _raw_after_sweep(published)


def _raw_after_sweep(world: World) -> bytes:
    world.shred()
    return b"".join(file.read_bytes() for file in world.folder.glob("state.db*"))


def test_f60_the_log_alone_tells_it_too(published: World) -> None:
    before = stored(published)
    published.destroy.schedule(SECURITY, V1, DAY, False)
    published.destroy.confirm(WITNESS, V1)
    published.clock.advance(DAY)
    published.shred()
    published.tombstones.kept.clear()
    put_back(published, before)
    (finding,) = verify(published).findings
    assert finding.withheld == "destroyed again"


def test_f56_exchanged_keys_are_named(published: World) -> None:
    first, second = stored(published), stored(published, V2)
    for mine, other in ((first, second), (second, first)):
        put_back(published, replace(mine, wrapped_key=other.wrapped_key))
    found = verify(published, keys=True).findings
    assert {(each.version, each.what) for each in found} == {
        (V1, "its wrapped key gives none: KEY_RECORD_CORRUPT"),
        (V2, "its wrapped key gives none: KEY_RECORD_CORRUPT"),
    }


def test_an_act_whose_commit_failed_did_not_happen(published: World) -> None:
    """Its record is followed by that of its failure."""
    published.states.disable(SECURITY, V2)
    done = published.audit.records[-1]
    failed = replace(done, outcome=Outcome.FAILED, reason="STATE_CONFLICT")
    lost = replace(
        done, request_id="f" * 32, details={**done.details, "version_uid": stored(published).uid}
    )
    published.audit.records += [lost, replace(failed, request_id="f" * 32, details=lost.details)]
    assert stored(published).state is VersionState.ENABLED
    assert verify(published).findings == ()


def test_a_rekey_tells_of_both_versions(published: World) -> None:
    who = caller("publisher")
    version = published.create_version(who, MODEL).version.version
    pin = published.upload_whole(version)
    published._finalize_version(who, version.name, pin, False, liveness=Waiting(), rekey_of=V1)
    assert verify(published).findings == ()
    before = stored(published)
    put_back(published, replace(before, state=VersionState.ENABLED))
    (finding,) = verify(published).findings
    assert (finding.version, finding.withheld) == (V1, "disabled")


def test_of_versions_that_no_record_tells_of_nothing_is_said(published: World) -> None:
    published.audit.records.clear()
    assert verify(published) == StateReport(2, 2, ())


def test_a_master_key_that_is_lost_and_found_again(published: World) -> None:
    """docs/guides/disasters.md: nothing is called corrupt, no other project suffers, and a key
    made anew under the same name opens nothing."""
    lost = published.vault.take_away("modelkms-demo")
    with pytest.raises(MasterKeyMisconfigured):
        published.lease(READER, V1)
    assert {(each.version, each.what) for each in verify(published, keys=True).findings} == {
        (V1, "its wrapped key gives none: MASTER_KEY_MISCONFIGURED"),
        (V2, "its wrapped key gives none: MASTER_KEY_MISCONFIGURED"),
    }
    published.vault.make("modelkms-demo")
    with pytest.raises(KeyRecordCorrupt):
        published.lease(READER, V1)
    assert len(verify(published, keys=True).findings) == 2
    published.vault.bring_back("modelkms-demo", lost)
    assert verify(published, keys=True).findings == ()
    published.lease(READER, V1)
