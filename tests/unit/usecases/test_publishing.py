"""Publishing: create a version, upload, finalize. The story, and what can go wrong in it."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.catalogue import ArtifactPin, VersionState
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    ArtifactCorrupt,
    ArtifactMismatch,
    AuditUnavailable,
    DeadlineExceeded,
    InvalidField,
    ModelNotFoundOrDenied,
    RecipientKeyInvalid,
    ServiceError,
    StateConflict,
    UploadIncomplete,
    UploadOffsetWrong,
    VersionDestroyed,
    VersionNotPending,
)
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.ports import ClientKey
from tests.support.usecase_fakes import Waiting, caller
from tests.unit.usecases.world import Client, World, artifact_of

MODEL = ModelName("demo", "face")
PUBLISHER = caller("publisher")


# --- projects and models -------------------------------------------------------------------------


def test_a_project_needs_its_master_key(world: World) -> None:
    world.policy.grant("security", Action.CREATE_PROJECT)
    world.make_master_key("modelkms-camera")

    project = world.create_project(caller("security"), ProjectName("camera"))

    assert project.master_key == "modelkms-camera"
    assert project.create_time == world.clock.now()
    assert world.audit.outcomes() == [("CreateProject", Outcome.OK, "")]
    with pytest.raises(ServiceError) as caught:
        world.create_project(caller("security"), ProjectName("unknown"))
    assert caught.value.reason == "MASTER_KEY_MISCONFIGURED"
    with pytest.raises(ServiceError) as caught:
        world.create_project(caller("security"), ProjectName("camera"))
    assert caught.value.reason == "ALREADY_EXISTS"
    assert world.audit.outcomes() == [
        ("CreateProject", Outcome.FAILED, "MASTER_KEY_MISCONFIGURED"),
        ("CreateProject", Outcome.FAILED, "ALREADY_EXISTS"),
    ]


def test_f17_who_may_not_create_a_project_does_not_reach_vault(world: World) -> None:
    with pytest.raises(ModelNotFoundOrDenied):
        world.create_project(caller("stranger"), ProjectName("demo"))
    assert world.master_keys.calls == []


def test_a_model_is_created_under_labels_that_policy_sees(world: World) -> None:
    world.policy.grant("publisher", Action.CREATE_MODEL)
    world.policy.needs_label = ("team", "vision")

    model = world.create_model(PUBLISHER, MODEL, {"team": "vision"})
    assert model.labels == {"team": "vision"}
    with pytest.raises(ModelNotFoundOrDenied):
        world.create_model(PUBLISHER, ModelName("demo", "voice"), {"team": "audio"})
    with pytest.raises(InvalidField):
        world.create_model(PUBLISHER, ModelName("demo", "voice"), {"team": "a\nb"})


def test_no_model_without_its_project(world: World) -> None:
    world.policy.grant("publisher", Action.CREATE_MODEL)
    with pytest.raises(ModelNotFoundOrDenied):
        world.create_model(PUBLISHER, ModelName("nowhere", "face"), {})


# --- creating a version --------------------------------------------------------------------------


def test_a_version_comes_with_its_data_key(world: World) -> None:
    world.publisher()
    client = Client()
    created = world.create_version(PUBLISHER, MODEL, client=client)

    version = created.version.version
    assert version.name == VersionName("demo", "face", 1)
    assert version.state is VersionState.PENDING
    assert (version.publisher, version.pin) == (PUBLISHER.principal.id, None)
    data_key = client.open_published(created, PUBLISHER)
    assert len(data_key) == 32
    assert world.unwrap(version) == data_key

    record = world.audit.records[-1]
    assert (record.event, record.outcome) == ("CreateVersion", Outcome.OK)
    assert record.details["version_uid"] == version.uid
    assert record.details["model_created"] == "yes"


def test_numbers_count_on_and_uids_differ(world: World) -> None:
    world.publisher()
    versions = [world.create_version(PUBLISHER, MODEL).version.version for _ in range(3)]
    assert [version.name.number for version in versions] == [1, 2, 3]
    assert len({version.uid for version in versions}) == 3
    assert len({version.artifact_id for version in versions}) == 3


def test_f50_the_same_request_gives_the_same_version_and_data_key(world: World) -> None:
    world.publisher()
    request_id = str(uuid.uuid4())
    first, second = Client(), Client(suite=2)
    one = world.create_version(PUBLISHER, MODEL, request_id=request_id, client=first)
    two = world.create_version(PUBLISHER, MODEL, request_id=request_id, client=second)

    assert one.version == two.version
    assert first.open_published(one, PUBLISHER) == second.open_published(two, PUBLISHER)
    assert world.audit.records[-1].details["repeated"] == "yes"


def test_a_request_id_is_the_publishers_own(world: World) -> None:
    world.publisher()
    world.publisher("other")
    request_id = str(uuid.uuid4())
    one = world.create_version(PUBLISHER, MODEL, request_id=request_id)
    two = world.create_version(caller("other"), MODEL, request_id=request_id)
    assert one.version.version.uid != two.version.version.uid


def test_f50_two_calls_at_once_with_one_request_id_make_one_version(world: World) -> None:
    world.publisher()
    request_id, inner = str(uuid.uuid4()), Client()
    made = []
    world.master_keys.meanwhile = lambda: made.append(
        world.create_version(PUBLISHER, MODEL, request_id=request_id, client=inner)
    )
    outer = Client()
    late = world.create_version(PUBLISHER, MODEL, request_id=request_id, client=outer)

    assert late.version == made[0].version
    assert outer.open_published(late, PUBLISHER) == inner.open_published(made[0], PUBLISHER)


def test_the_same_request_after_finalizing_is_refused(world: World) -> None:
    world.publisher()
    request_id = str(uuid.uuid4())
    world.publish(MODEL, request_id=request_id)
    with pytest.raises(VersionNotPending):
        world.create_version(PUBLISHER, MODEL, request_id=request_id)


@pytest.mark.parametrize("request_id", ["", "x", str(uuid.UUID(int=1)).upper() + "A", "A" * 36])
def test_f23_a_request_id_is_a_uuid(world: World, request_id: str) -> None:
    world.publisher()
    with pytest.raises(InvalidField):
        world.create_version(PUBLISHER, MODEL, request_id=request_id)


def test_a_first_version_needs_the_right_to_create_its_model(world: World) -> None:
    world.policy.grant("publisher", Action.CREATE_VERSION)
    with pytest.raises(ModelNotFoundOrDenied):
        world.create_version(PUBLISHER, MODEL)
    assert world.master_keys.calls == []
    record = world.audit.records[-1]
    assert (record.outcome, record.details["cause"]) == (Outcome.DENIED, "denied CreateModel")

    world.policy.grant("other", Action.CREATE_MODEL)
    world.create_model(caller("other"), MODEL, {})
    assert world.create_version(PUBLISHER, MODEL).version.version.name.number == 1


def test_f17_a_missing_project_is_told_as_a_forbidden_one(world: World) -> None:
    world.publisher()
    with pytest.raises(ModelNotFoundOrDenied) as missing:
        world.create_version(PUBLISHER, ModelName("nowhere", "face"))
    with pytest.raises(ModelNotFoundOrDenied) as denied:
        world.create_version(caller("stranger"), MODEL)
    assert missing.value.message == denied.value.message
    assert missing.value.metadata.keys() == denied.value.metadata.keys() == {"decision_id"}
    assert world.master_keys.calls == []


def test_f25_a_bad_client_key_does_not_reach_vault(world: World) -> None:
    world.publisher()
    with pytest.raises(RecipientKeyInvalid):
        world.create_version(PUBLISHER, MODEL, client_key=ClientKey(2, bytes(32), bytes(16)))
    assert world.master_keys.calls == []
    assert world.audit.outcomes() == [("CreateVersion", Outcome.FAILED, "RECIPIENT_KEY_INVALID")]


def test_f28_a_deadline_that_is_over_does_not_reach_vault(world: World) -> None:
    world.publisher()
    with pytest.raises(DeadlineExceeded):
        world.create_version(PUBLISHER, MODEL, liveness=Waiting(checks=0))
    assert world.master_keys.calls == []


def test_f19_a_grant_withdrawn_while_vault_works_makes_no_version(world: World) -> None:
    world.publisher()
    world.master_keys.meanwhile = lambda: world.policy.withdraw("publisher", Action.CREATE_VERSION)
    with pytest.raises(ModelNotFoundOrDenied):
        world.create_version(PUBLISHER, MODEL)
    assert world.version(VersionName("demo", "face", 1)) is None
    assert world.audit.outcomes() == [
        ("CreateVersion", Outcome.DENIED, "MODEL_NOT_FOUND_OR_DENIED")
    ]


def test_f61_no_record_no_version_no_key(world: World) -> None:
    world.publisher()
    world.audit.broken = lambda record: True
    with pytest.raises(AuditUnavailable):
        world.create_version(PUBLISHER, MODEL)
    assert world.version(VersionName("demo", "face", 1)) is None
    assert world.model(MODEL) is None


def test_a_commit_that_fails_is_recorded_too(world: World) -> None:
    world.publisher()
    world.database.fail_writes = [StateConflict()]
    with pytest.raises(StateConflict):
        world.create_version(PUBLISHER, MODEL)
    assert world.audit.outcomes() == [("CreateVersion", Outcome.FAILED, "STATE_CONFLICT")]


# --- uploading -----------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_broke(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    data, _ = artifact_of(version, 3_000_000)
    assert world.upload.status(PUBLISHER, version.name) == 0

    def breaking() -> object:
        yield data[: 1 << 20]
        yield data[1 << 20 : 1_500_000]
        raise DeadlineExceeded

    with pytest.raises(DeadlineExceeded):
        world.upload.write(PUBLISHER, version.name, 0, breaking(), liveness=Waiting())  # type: ignore[arg-type]  # a generator of bytes that ends by raising
    stored = world.upload.status(PUBLISHER, version.name)
    assert stored == 1_500_000
    record = next(r for r in world.audit.records if r.outcome is Outcome.FAILED)
    assert record.details["stored_bytes"] == "1500000"

    rest = iter([data[stored : stored + (1 << 20)], data[stored + (1 << 20) :]])
    whole = world.upload.write(PUBLISHER, version.name, stored, rest, liveness=Waiting())
    assert whole == len(data) == world.upload.status(PUBLISHER, version.name)


def test_an_upload_elsewhere_than_at_its_end_is_refused(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    with pytest.raises(UploadOffsetWrong):
        world.upload.write(PUBLISHER, version.name, 7, iter([b"x"]), liveness=Waiting())


def test_chunks_have_at_most_a_mebibyte(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    chunks = iter([bytes(1 << 20), bytes((1 << 20) + 1)])
    with pytest.raises(InvalidField):
        world.upload.write(PUBLISHER, version.name, 0, chunks, liveness=Waiting())
    assert world.upload.status(PUBLISHER, version.name) == 1 << 20


def test_f17_another_publishers_upload_is_not_found(world: World) -> None:
    world.publisher()
    world.publisher("other")
    version = world.create_version(PUBLISHER, MODEL).version.version
    other = caller("other")
    for act in (
        lambda: world.upload.status(other, version.name),
        lambda: world.upload.write(other, version.name, 0, iter([b"x"]), liveness=Waiting()),
        lambda: world.finalize(other, version.name, artifact_of(version)[1]),
        lambda: world.upload.status(other, VersionName("demo", "face", 9)),
    ):
        with pytest.raises(ModelNotFoundOrDenied):
            act()
    causes = [r.details["cause"] for r in world.audit.records if r.outcome is Outcome.DENIED]
    assert causes == ["foreign", "foreign", "foreign", "missing"]


def test_f19_a_publisher_whose_grant_is_withdrawn_uploads_no_more(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    world.policy.withdraw("publisher", Action.CREATE_VERSION)
    with pytest.raises(ModelNotFoundOrDenied):
        world.upload.write(PUBLISHER, version.name, 0, iter([b"x"]), liveness=Waiting())


def test_f28_an_upload_stops_with_its_caller(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    chunks = iter([b"a" * 10, b"b" * 10, b"c" * 10])
    with pytest.raises(DeadlineExceeded):
        world.upload.write(PUBLISHER, version.name, 0, chunks, liveness=Waiting(checks=1))
    assert world.upload.status(PUBLISHER, version.name) == 20


# --- finalizing ----------------------------------------------------------------------------------


def test_a_finalized_version_is_enabled_pinned_and_stable(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version)

    done = world.finalize(PUBLISHER, version.name, pin)

    assert done.version.version.state is VersionState.ENABLED
    assert done.version.version.pin == pin
    assert done.version.version.finalize_time == world.clock.now()
    assert done.version.aliases == ("stable",)
    assert done.stable_version == version.name
    record = world.audit.records[-1]
    assert (record.event, record.outcome) == ("FinalizeVersion", Outcome.OK)
    assert record.details["digest"] == pin.digest.hex()
    with pytest.raises(VersionNotPending):
        world.upload.status(PUBLISHER, version.name)


def test_later_versions_become_stable_when_promoted(world: World) -> None:
    world.publisher()
    first = world.publish(MODEL)
    second = world.publish(MODEL)
    assert second.stable_version == first.version.version.name
    third = world.publish(MODEL, promote=True)
    assert third.stable_version == third.version.version.name
    assert third.version.aliases == ("stable",)


def test_promoting_needs_the_right_to_set_aliases(world: World) -> None:
    world.publisher()
    world.policy.withdraw("publisher", Action.SET_ALIAS)
    first = world.publish(MODEL)
    assert first.version.aliases == ("stable",)
    with pytest.raises(ModelNotFoundOrDenied):
        world.publish(MODEL, promote=True)


def test_finalizing_again_with_the_same_pin_moves_nothing(world: World) -> None:
    world.publisher()
    first = world.publish(MODEL, promote=True)
    second = world.publish(MODEL, promote=True)
    version, pin = first.version.version, first.version.version.pin
    assert pin is not None

    again = world.finalize(PUBLISHER, version.name, pin, promote=True)

    assert again.version.version == version
    assert again.stable_version == second.version.version.name
    assert world.audit.records[-1].details["repeated"] == "yes"
    other = ArtifactPin(pin.length_bytes, pin.floe_header_tag, bytes(32))
    with pytest.raises(VersionNotPending):
        world.finalize(PUBLISHER, version.name, other)


def test_an_incomplete_upload_can_go_on(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    data, pin = artifact_of(version, 2_000_000)
    with pytest.raises(UploadIncomplete) as caught:
        world.finalize(PUBLISHER, version.name, pin)
    assert caught.value.metadata == {"stored_bytes": "0"}
    world.upload_bytes(version, data[:1_000_000])
    with pytest.raises(UploadIncomplete) as caught:
        world.finalize(PUBLISHER, version.name, pin)
    assert caught.value.metadata == {"stored_bytes": "1000000"}
    world.upload_bytes(version, data[1_000_000:], offset=1_000_000)
    assert world.finalize(PUBLISHER, version.name, pin).version.version.pin == pin


@pytest.mark.parametrize("size", [0, 1, 1_000_000, 8 * (1 << 20), 8 * (1 << 20) + 1, 17_000_000])
def test_pins_of_many_sizes_agree(world: World, size: int) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version, size)
    assert world.finalize(PUBLISHER, version.name, pin).version.version.pin == pin


def test_f45_an_artifact_of_another_version_is_refused(world: World) -> None:
    world.publisher()
    for changes in (
        {"name": VersionName("demo", "face", 9)},
        {"name": VersionName("demo", "voice", 1)},
        {"uid": "0" * 32},
        {"artifact_id": "0" * 32},
    ):
        fresh = world.create_version(PUBLISHER, MODEL).version.version
        data, pin = artifact_of(fresh, **changes)
        world.upload_bytes(fresh, data)
        with pytest.raises(ArtifactMismatch):
            world.finalize(PUBLISHER, fresh.name, pin)
        after = world.version(fresh.name)
        assert after is not None
        assert after.state is VersionState.PENDING


def test_f45_a_pin_that_does_not_agree_is_refused(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version, 100_000)
    tag = pin.floe_header_tag
    for wrong in (
        ArtifactPin(pin.length_bytes - 1, tag, pin.digest),
        ArtifactPin(pin.length_bytes, tag[:-1] + bytes([tag[-1] ^ 1]), pin.digest),
        ArtifactPin(pin.length_bytes, tag, pin.digest[:-1] + bytes([pin.digest[-1] ^ 1])),
    ):
        with pytest.raises(ArtifactMismatch):
            world.finalize(PUBLISHER, version.name, wrong)
    for malformed in (
        ArtifactPin(0, tag, pin.digest),
        ArtifactPin(pin.length_bytes, tag[:-1], pin.digest),
        ArtifactPin(pin.length_bytes, tag, pin.digest + b"\0"),
    ):
        with pytest.raises(InvalidField):
            world.finalize(PUBLISHER, version.name, malformed)
    assert world.finalize(PUBLISHER, version.name, pin).version.version.pin == pin


@pytest.mark.parametrize("size", [1, 10, 100, 5000])
def test_what_is_no_artifact_is_refused(world: World, size: int) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    world.upload_bytes(version, b"\x5a" * size)
    with pytest.raises(ArtifactCorrupt):
        world.finalize(PUBLISHER, version.name, ArtifactPin(size, bytes(32), bytes(32)))


def test_bytes_added_between_check_and_publishing_are_noticed(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version)
    world.store.before_publishing = lambda: world.upload_bytes(
        version, b"x", offset=pin.length_bytes
    )
    with pytest.raises(ArtifactMismatch):
        world.finalize(PUBLISHER, version.name, pin)


def test_f19_a_grant_withdrawn_while_finalizing_enables_nothing(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version)
    world.store.before_publishing = lambda: world.policy.withdraw(
        "publisher", Action.CREATE_VERSION
    )
    with pytest.raises(ModelNotFoundOrDenied):
        world.finalize(PUBLISHER, version.name, pin)
    after = world.version(version.name)
    assert after is not None
    assert after.state is VersionState.PENDING


def test_f61_no_record_no_enabled_version(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version)
    world.audit.broken = lambda record: record.outcome is Outcome.OK
    with pytest.raises(AuditUnavailable):
        world.finalize(PUBLISHER, version.name, pin)
    after = world.version(version.name)
    assert after is not None
    assert after.state is VersionState.PENDING
    world.audit.broken = lambda record: False
    assert world.finalize(PUBLISHER, version.name, pin).version.version.pin == pin


# --- expiring ------------------------------------------------------------------------------------


def test_a_version_never_finalized_expires_with_its_upload(world: World) -> None:
    world.publisher()
    done = world.publish(MODEL).version.version
    request_id = str(uuid.uuid4())
    version = world.create_version(PUBLISHER, MODEL, request_id=request_id).version.version
    world.upload_bytes(version, b"half")
    world.clock.advance(world.pending_ttl)
    young = world.create_version(PUBLISHER, MODEL).version.version
    assert world.expire_pending() == 0
    world.clock.advance(timedelta(microseconds=1))

    assert world.expire_pending() == 1
    assert world.expire_pending() == 0

    after = world.version(version.name)
    assert after is not None
    assert (after.state, after.wrapped_key.ciphertext) == (VersionState.DESTROYED, "")
    assert world.store.deleted == [version.artifact_id]
    assert world.store.stored_bytes(version.artifact_id) is None
    assert [getattr(world.version(v.name), "state", None) for v in (done, young)] == [
        VersionState.ENABLED,
        VersionState.PENDING,
    ]
    assert [record.event for record in world.audit.records].count("ExpireVersion") == 1
    for act in (
        lambda: world.upload.status(PUBLISHER, version.name),
        lambda: world.finalize(PUBLISHER, version.name, artifact_of(version)[1]),
        lambda: world.create_version(PUBLISHER, MODEL, request_id=request_id),
    ):
        with pytest.raises(VersionDestroyed):
            act()


def test_a_version_that_expires_while_it_is_finalized_stays_destroyed(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version)
    world.clock.advance(2 * world.pending_ttl)

    def expire() -> None:
        assert world.expire_pending() == 1

    world.database.before_write = expire
    with pytest.raises(VersionDestroyed):
        world.finalize(PUBLISHER, version.name, pin)
    assert world.store.stored_bytes(version.artifact_id) is None


def test_a_version_finalized_in_the_last_moment_does_not_expire(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    pin = world.upload_whole(version)
    world.clock.advance(2 * world.pending_ttl)

    def finalize() -> None:
        world.finalize(PUBLISHER, version.name, pin)

    world.database.before_write = finalize
    assert world.expire_pending() == 0
    assert world.store.stored_bytes(version.artifact_id) == pin.length_bytes


def test_f61_nothing_expires_unrecorded(world: World) -> None:
    world.publisher()
    version = world.create_version(PUBLISHER, MODEL).version.version
    world.clock.advance(2 * world.pending_ttl)
    world.audit.broken = lambda record: True
    with pytest.raises(AuditUnavailable):
        world.expire_pending()
    after = world.version(version.name)
    assert after is not None
    assert after.state is VersionState.PENDING
