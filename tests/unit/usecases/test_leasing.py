"""Leasing: the key leaves only under a permit, a committed lease and a durable record."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.exceptions import InvalidTag

from kms_service.domain.audit import Outcome
from kms_service.domain.decisions import Action, Circumstances, Resource
from kms_service.domain.errors import (
    AuditUnavailable,
    ConcurrentUpdate,
    DeadlineExceeded,
    InvalidField,
    KeyRecordCorrupt,
    LeaseExpired,
    LeaseLimit,
    LeaseMaxTtl,
    LeaseNotFoundOrDenied,
    LeaseRevoked,
    ModelNotFoundOrDenied,
    NoStableVersion,
    PolicyUnavailable,
    ProjectFrozen,
    RecipientKeyInvalid,
    StateUnavailable,
    VaultSealed,
    VersionDisabled,
    VersionNotFinalized,
)
from kms_service.domain.leases import LeaseBounds, LeaseState
from kms_service.domain.names import AliasName, LeaseName, ModelName, ProjectName, VersionName
from kms_service.domain.ports import ClientKey
from kms_service.domain.secret import SecretBytes
from tests.support.usecase_fakes import HOUR, Waiting, caller
from tests.unit.usecases.world import Client, World, stable

MODEL = ModelName("demo", "face")
V1 = VersionName("demo", "face", 1)
STABLE = stable(MODEL)
READER = caller("reader")
DEMO = ProjectName("demo")


@pytest.fixture
def published(world: World) -> World:
    """A model with one version that `reader` may lease; nothing recorded, Vault not called."""
    world.publisher()
    world.publish(MODEL)
    world.reader()
    world.audit.take()
    world.master_keys.calls.clear()
    return world


# --- the record ---------------------------------------------------------------------------------


def test_a_record_has_the_trace_and_how_long_it_took(published: World) -> None:
    published.master_keys.meanwhile = lambda: published.clock.advance(timedelta(milliseconds=7))
    published.lease(replace(READER, trace_id="ab" * 16), STABLE)
    (record,) = published.audit.take()
    assert (record.trace_id, record.latency_us) == ("ab" * 16, 7000)


# --- the story -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [1, 2])
def test_a_reader_gets_version_lease_and_key(published: World, suite: int) -> None:
    client = Client(suite)
    leased = published.lease(READER, STABLE, client=client)

    version = leased.version.version
    assert (version.name, leased.version.aliases) == (V1, ("stable",))
    assert client.open_leased(leased, READER) == published.unwrap(version)
    lease, now = leased.lease.lease, published.clock.now()
    assert leased.lease.state is LeaseState.LIVE
    assert (lease.principal, lease.instance) == (READER.principal.id, READER.principal.instance)
    assert (lease.version, lease.version_uid) == (V1, version.uid)
    assert (lease.issue_time, lease.expire_time) == (now, now + HOUR)
    assert lease.absolute_end_time == now + 12 * HOUR
    assert leased.lease_duration == HOUR
    assert published.stored_lease(lease.name) == lease
    assert leased.artifact.url == ""

    (record,) = published.audit.take()
    assert (record.event, record.outcome) == ("LeaseDataKey", Outcome.OK)
    assert record.principal == READER.principal.id
    assert record.request_id == READER.request_id
    assert record.resource == str(STABLE)
    assert record.decision_id
    assert record.policies == ("granted",)
    assert record.details["lease"] == str(lease.name)
    assert record.details["version"] == str(V1)
    assert record.details["version_uid"] == version.uid


def test_nobody_else_opens_the_answer(published: World) -> None:
    client = Client()
    leased = published.lease(READER, STABLE, client=client)
    with pytest.raises(InvalidTag):
        client.open_leased(leased, caller("stranger"))
    other = Client()
    other.offer()
    with pytest.raises(InvalidTag):
        other.open_leased(leased, READER)


def test_no_record_and_no_answer_shows_the_data_key(published: World) -> None:
    client = Client()
    leased = published.lease(READER, STABLE, client=client)
    data_key = client.open_leased(leased, READER)
    for seen in (repr(leased), repr(published.audit.records)):
        assert repr(data_key) not in seen
        assert data_key.hex() not in seen


def test_versions_aliases_and_models_are_leased(published: World) -> None:
    second = published.publish(MODEL)
    for reference, number in (
        (STABLE, 1),
        (V1, 1),
        (second.version.version.name, 2),
    ):
        assert published.lease(READER, reference).version.version.name.number == number


def test_a_lease_lasts_as_asked_within_policy(published: World) -> None:
    for asked, given in (
        (None, HOUR),
        (timedelta(minutes=5), timedelta(minutes=5)),
        (timedelta(days=3), HOUR),
        (timedelta(milliseconds=1, microseconds=999), timedelta(milliseconds=1)),
    ):
        leased = published.lease(READER, STABLE, ttl=asked)
        assert leased.lease_duration == given
        assert leased.lease.lease.expire_time == published.clock.now() + given
    for wrong in (timedelta(0), timedelta(microseconds=999), timedelta(seconds=-1)):
        with pytest.raises(InvalidField):
            published.lease(READER, STABLE, ttl=wrong)


def test_durations_are_whole_milliseconds_whatever_policy_says(published: World) -> None:
    published.policy.bounds = LeaseBounds(timedelta(microseconds=1_234_567), HOUR)
    client = Client()
    leased = published.lease(READER, STABLE, client=client)
    assert leased.lease_duration == timedelta(milliseconds=1234)
    assert client.open_leased(leased, READER)


def test_policy_sees_labels_and_claims(published: World) -> None:
    published.policy.asked.clear()
    published.lease(READER, STABLE, attributes={"platform": "linux"})
    assert all(
        asked.circumstances.attributes == {"platform": "linux"} for asked in published.policy.asked
    )
    with pytest.raises(InvalidField):
        published.lease(READER, STABLE, attributes={"platform": "li\nnux"})


def test_a_store_that_signs_gives_a_link(published: World) -> None:
    published.store.signs = True
    leased = published.lease(READER, STABLE)
    assert leased.artifact.url.startswith("https://store.example/")
    assert leased.artifact.url_expire_time == published.clock.now() + timedelta(hours=24)


# --- refused -------------------------------------------------------------------------------------


def test_f17_missing_and_forbidden_look_alike_and_leave_vault_alone(published: World) -> None:
    stranger = caller("stranger")
    refused = []
    for who, reference in (
        (stranger, STABLE),
        (stranger, V1),
        (stranger, stable(ModelName("demo", "absent"))),
        (stranger, stable(ModelName("absent", "face"))),
        (READER, stable(ModelName("demo", "absent"))),
        (READER, stable(ModelName("absent", "face"))),
        (READER, VersionName("demo", "face", 7)),
    ):
        with pytest.raises(ModelNotFoundOrDenied) as caught:
            published.lease(who, reference)
        refused.append(caught.value)
    assert published.master_keys.calls == []
    assert len({error.message for error in refused}) == 1
    assert all(error.metadata.keys() == {"decision_id"} for error in refused)
    assert len({error.metadata["decision_id"] for error in refused}) == len(refused)

    records = published.audit.take()
    assert [record.decision_id for record in records] == [
        error.metadata["decision_id"] for error in refused
    ]
    assert {record.outcome for record in records} == {Outcome.DENIED}


def test_f17_refusals_take_the_same_steps(published: World) -> None:
    """No step more or less by which a clock could tell a forbidden model from a missing one."""
    steps = []
    for reference in (V1, VersionName("demo", "absent", 1), VersionName("absent", "face", 1)):
        published.policy.asked.clear()
        with pytest.raises(ModelNotFoundOrDenied):
            published.lease(caller("stranger"), reference)
        steps.append((len(published.policy.asked), len(published.audit.take())))
    assert steps == [(1, 1)] * 3


def test_f18_without_policy_nothing_is_issued(published: World) -> None:
    published.policy.available = False
    with pytest.raises(PolicyUnavailable):
        published.lease(READER, STABLE)
    assert published.master_keys.calls == []
    assert published.audit.outcomes() == [("LeaseDataKey", Outcome.FAILED, "POLICY_UNAVAILABLE")]


def test_states_are_told_after_a_permit_only(published: World) -> None:
    security, stranger = published.security(), caller("stranger")
    published.states.disable(security, V1)
    pending = published.create_version(caller("publisher"), MODEL).version.version
    published.master_keys.calls.clear()

    with pytest.raises(VersionDisabled):
        published.lease(READER, V1)
    with pytest.raises(VersionNotFinalized):
        published.lease(READER, pending.name)
    with pytest.raises(NoStableVersion):
        published.lease(READER, AliasName("demo", "face", "canary"))
    for reference in (V1, pending.name, AliasName("demo", "face", "canary")):
        with pytest.raises(ModelNotFoundOrDenied):
            published.lease(stranger, reference)
    assert published.master_keys.calls == []


def test_f25_a_bad_client_key_does_not_reach_vault(published: World) -> None:
    for wrong in (
        ClientKey(0, bytes(32), bytes(32)),
        ClientKey(1, bytes(1216), bytes(32)),
        ClientKey(2, bytes(32), bytes(32)),
        ClientKey(2, b"\x09" + bytes(31), bytes(15)),
    ):
        with pytest.raises(RecipientKeyInvalid):
            published.lease(READER, STABLE, client_key=wrong)
    assert published.master_keys.calls == []
    assert published.live_leases() == 0


# --- faults in mid-call --------------------------------------------------------------------------


def test_f19_a_version_disabled_while_vault_works_is_not_leased(published: World) -> None:
    security = published.security()
    published.master_keys.meanwhile = lambda: (published.states.disable(security, V1), None)[1]
    with pytest.raises(VersionDisabled):
        published.lease(READER, STABLE)
    assert published.live_leases() == 0
    assert published.audit.outcomes() == [
        ("DisableVersion", Outcome.OK, ""),
        ("LeaseDataKey", Outcome.FAILED, "VERSION_DISABLED"),
    ]


def test_f19_a_grant_withdrawn_while_vault_works_is_obeyed(published: World) -> None:
    published.master_keys.meanwhile = lambda: published.policy.withdraw(
        "reader", Action.LEASE_DATA_KEY
    )
    with pytest.raises(ModelNotFoundOrDenied):
        published.lease(READER, STABLE)
    assert published.live_leases() == 0
    assert published.audit.outcomes() == [
        ("LeaseDataKey", Outcome.DENIED, "MODEL_NOT_FOUND_OR_DENIED")
    ]


def test_f28_a_deadline_over_before_vault(published: World) -> None:
    with pytest.raises(DeadlineExceeded):
        published.lease(READER, STABLE, liveness=Waiting(checks=0))
    assert published.master_keys.calls == []
    assert published.live_leases() == 0


def test_f28_a_deadline_over_before_release_revokes_the_lease(published: World) -> None:
    with pytest.raises(DeadlineExceeded):
        published.lease(READER, STABLE, liveness=Waiting(checks=1))

    assert published.live_leases() == 0
    issued, undelivered = published.audit.take()
    assert (issued.outcome, undelivered.outcome) == (Outcome.OK, Outcome.FAILED)
    assert undelivered.reason == "DEADLINE_EXCEEDED"
    assert undelivered.details["delivered"] == "no"
    assert undelivered.details["lease"] == issued.details["lease"]
    lease = published.stored_lease(LeaseName.parse(issued.details["lease"]))
    assert lease is not None
    assert lease.revoke_time == published.clock.now()


def test_f61_without_a_record_no_key_and_no_lease(published: World) -> None:
    published.audit.broken = lambda record: True
    with pytest.raises(AuditUnavailable):
        published.lease(READER, STABLE)
    assert published.live_leases() == 0
    published.audit.broken = lambda record: False
    assert published.lease(READER, STABLE).lease.state is LeaseState.LIVE


def test_f61_a_record_that_fails_alone_leaves_one_of_the_failure(published: World) -> None:
    published.audit.broken = lambda record: record.outcome is Outcome.OK
    with pytest.raises(AuditUnavailable):
        published.lease(READER, STABLE)
    (record,) = published.audit.take()
    assert (record.outcome, record.reason) == (Outcome.FAILED, "AUDIT_UNAVAILABLE")
    assert record.details["delivered"] == "no"
    assert record.details["lease_revoked"] == "yes"


def test_f61_a_denial_that_cannot_be_recorded_is_an_outage(published: World) -> None:
    published.audit.broken = lambda record: True
    for who in (READER, caller("stranger")):
        with pytest.raises(AuditUnavailable):
            published.lease(who, stable(ModelName("demo", "absent")))


def test_a_lease_that_cannot_be_withdrawn_still_gives_no_key(published: World) -> None:
    published.database.fail_writes = [None, None, StateUnavailable()]
    with pytest.raises(DeadlineExceeded):
        published.lease(READER, STABLE, liveness=Waiting(checks=1))
    assert published.audit.take()[-1].details["lease_revoked"] == "STATE_UNAVAILABLE"


def test_f35_an_outage_of_vault_is_an_outage(published: World) -> None:
    def seal() -> None:
        raise VaultSealed

    published.master_keys.meanwhile = seal
    with pytest.raises(VaultSealed):
        published.lease(READER, STABLE)
    assert published.live_leases() == 0
    assert published.audit.outcomes() == [("LeaseDataKey", Outcome.FAILED, "VAULT_SEALED")]


def test_f56_wrapped_keys_exchanged_between_versions_give_no_key(published: World) -> None:
    published.publish(MODEL)
    first, second = (published.version(VersionName("demo", "face", n)) for n in (1, 2))
    assert first is not None
    assert second is not None
    with published.database.write() as tx:
        tx.versions.update(
            replace(first, wrapped_key=second.wrapped_key, revision=first.revision + 1)
        )
    with pytest.raises(KeyRecordCorrupt):
        published.lease(READER, V1)
    assert published.live_leases() == 0


def test_a_bug_is_recorded_as_one_and_issues_nothing(published: World) -> None:
    def bug() -> None:
        raise RuntimeError("secret detail")

    published.master_keys.meanwhile = bug
    with pytest.raises(RuntimeError):
        published.lease(READER, STABLE)
    (record,) = published.audit.take()
    assert (record.outcome, record.reason) == (Outcome.FAILED, "INTERNAL")
    assert "secret detail" not in repr(record)


# --- a data key in memory ------------------------------------------------------------------------


def _keep(world: World) -> SecretBytes:
    """V1's data key as it is in memory: a copy of the next call's own."""
    version = world.version(V1)
    assert version is not None
    kept = SecretBytes(world.unwrap(version))
    world.master_keys.kept[version.wrapped_key.ciphertext] = kept
    world.master_keys.calls.clear()
    return kept


def test_a_key_in_memory_is_leased_in_one_transaction_without_vault(published: World) -> None:
    kept = _keep(published)
    published.policy.asked.clear()
    client, expected = Client(), kept.reveal()
    published.database.fail_writes = [None, StateUnavailable()]  # a second one would fail
    leased = published.lease(READER, STABLE, client=client)
    assert client.open_leased(leased, READER) == expected
    assert published.master_keys.calls == []
    assert len(published.policy.asked) == 1
    assert len(published.audit.take()) == 1
    assert kept.reveal() == bytes(32)


def test_f67_a_key_in_memory_is_refused_as_one_that_is_not(published: World) -> None:
    security = published.security()
    published.policy.bounds = LeaseBounds(HOUR, HOUR, max_live=1)
    published.lease(READER, STABLE)
    for refused in (LeaseLimit, ProjectFrozen, VersionDisabled, ModelNotFoundOrDenied):
        if refused is ProjectFrozen:
            published.standing.freeze(security, DEMO, "theft")
        if refused is VersionDisabled:
            published.standing.unfreeze(security, DEMO)
            published.states.disable(security, V1)
        if refused is ModelNotFoundOrDenied:
            published.standing.block(security, READER.principal.id, "theft", None)
        kept, leases = _keep(published), published.live_leases()
        with pytest.raises(refused):
            published.lease(READER, STABLE)
        assert published.live_leases() == leases
        assert kept.reveal() in (bytes(32), _unwrapped(published))  # wiped, or never taken


def _unwrapped(world: World) -> bytes:
    version = world.version(V1)
    assert version is not None
    return world.unwrap(version)


def test_an_alias_that_moves_while_vault_works_leases_what_it_meant(published: World) -> None:
    second = published.publish(MODEL).version.version.name
    published.master_keys.calls.clear()
    published.master_keys.meanwhile = lambda: published.set_alias(
        caller("publisher"), STABLE, second
    )
    client = Client()
    leased = published.lease(READER, STABLE, client=client)
    assert leased.version.version.name == V1
    assert client.open_leased(leased, READER) == _unwrapped(published)


# --- renewing ------------------------------------------------------------------------------------


def test_f20_renewal_extends_within_policy(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.clock.advance(HOUR / 2)
    renewed = published.renew(READER, leased.lease)
    assert renewed.lease.expire_time == published.clock.now() + HOUR
    assert (renewed.lease.renewals, renewed.state) == (1, LeaseState.LIVE)
    assert published.stored_lease(renewed.lease.name) == renewed.lease
    record = published.audit.take()[-1]
    assert (record.event, record.outcome) == ("RenewLease", Outcome.OK)
    assert record.details["renewals"] == "1"


def test_a_renewal_is_recorded_with_lease_version_and_end(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.audit.take()
    renewed = published.renew(READER, leased.lease).lease
    (record,) = published.audit.take()
    assert record.resource == str(renewed.name)
    assert record.details == {
        "version": str(renewed.version),
        "version_uid": renewed.version_uid,
        "renewals": "1",
        "expire_time": renewed.expire_time.isoformat(),
    }


def test_f20_a_renewal_lasts_as_asked_but_is_no_shortening(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.clock.advance(HOUR * 0.75)
    shorter = published.renew(READER, leased.lease, ttl=HOUR * 0.1)
    assert shorter.lease.expire_time == leased.lease.lease.expire_time
    longer = published.renew(READER, leased.lease, ttl=HOUR * 0.5)
    assert longer.lease.expire_time == published.clock.now() + HOUR * 0.5
    with pytest.raises(InvalidField):
        published.renew(READER, leased.lease, ttl=timedelta(0))


def test_f19_policy_is_asked_about_the_model_of_the_lease(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.policy.asked.clear()
    published.renew(READER, leased.lease)
    with pytest.raises(LeaseNotFoundOrDenied):
        published.renew_lease(READER, LeaseName("demo", "0" * 32), None)
    asked = [(request.action, request.resource) for request in published.policy.asked]
    assert asked == [
        (Action.LEASE_DATA_KEY, Resource("demo", "face")),
        (Action.LEASE_DATA_KEY, Resource("demo", "none")),
    ]


@pytest.mark.parametrize("gone", [{"version": VersionName("demo", "face", 9)}, {"uid": "0" * 32}])
def test_f19_a_lease_of_what_is_no_more_is_revoked(
    published: World, gone: dict[str, object]
) -> None:
    held = published.lease(READER, STABLE).lease.lease
    stale = replace(
        held,
        name=LeaseName("demo", "1" * 32),
        version=gone.get("version", held.version),  # type: ignore[arg-type]
        version_uid=str(gone.get("uid", held.version_uid)),
    )
    with published.database.write() as tx:
        tx.leases.insert(stale)
    with pytest.raises(LeaseRevoked):
        published.renew_lease(READER, stale.name, None)
    details = published.audit.take()[-1].details
    assert (details["lease_revoked"], details["cause"]) == ("yes", "version gone")


def test_f20_expired_leases_do_not_revive(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.clock.advance(HOUR)
    with pytest.raises(LeaseExpired):
        published.renew(READER, leased.lease)


def test_f20_renewal_ends_at_the_absolute_end(published: World) -> None:
    published.policy.bounds = LeaseBounds(HOUR, 2 * HOUR)
    lease = published.lease(READER, STABLE).lease
    for _ in range(2):
        published.clock.advance(HOUR * 0.9)
        lease = published.renew(READER, lease)
    assert lease.lease.expire_time == lease.lease.absolute_end_time
    with pytest.raises(LeaseMaxTtl):
        published.renew(READER, lease)


def test_f20_another_principal_or_instance_finds_no_lease(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.reader("other")
    guessed = LeaseName("demo", "0" * 32)
    refused = []
    for who, name in (
        (caller("other"), leased.lease.lease.name),
        (caller("stranger"), leased.lease.lease.name),
        (caller("reader", instance="f" * 64), leased.lease.lease.name),
        (READER, guessed),
        (caller("stranger"), guessed),
    ):
        published.policy.asked.clear()
        with pytest.raises(LeaseNotFoundOrDenied) as caught:
            published.renew_lease(who, name, None)
        refused.append(caught.value)
        assert len(published.policy.asked) == 1
    assert len({error.message for error in refused}) == 1
    assert all(error.metadata.keys() == {"decision_id"} for error in refused)
    assert published.live_leases() == 1


def test_f19_renewal_is_authorised_anew(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.policy.withdraw("reader", Action.LEASE_DATA_KEY)
    with pytest.raises(LeaseRevoked):
        published.renew(READER, leased.lease)
    assert published.live_leases() == 0
    assert published.audit.take()[-1].details["cause"] == "denied LeaseDataKey"
    # Granting anew does not bring it back.
    published.reader()
    with pytest.raises(LeaseRevoked):
        published.renew(READER, leased.lease)


def test_f19_a_renewal_is_judged_by_the_circumstances_of_its_lease(published: World) -> None:
    published.policy.needs = lambda around: (
        around.suite == 2 and around.attributes == {"site": "north"}
    )
    leased = published.lease(READER, STABLE, client=Client(2), attributes={"site": "north"})
    published.clock.advance(HOUR / 2)
    renewed = published.renew(READER, leased.lease)
    assert renewed.lease.renewals == 1
    assert published.renew(READER, renewed).lease.renewals == 2
    # What policy demands from now on, the lease has not: a new one would not be given.
    published.policy.needs = lambda around: around.attributes == {"site": "south"}
    with pytest.raises(LeaseRevoked):
        published.renew(READER, leased.lease)
    assert published.live_leases() == 0


def test_f19_a_renewal_is_judged_by_the_client_that_renews(published: World) -> None:
    newer = replace(READER, client_version="2.0.0")
    published.policy.needs = lambda around: around.client_version == "2.0.0"
    leased = published.lease(newer, STABLE)
    assert published.renew(newer, leased.lease).lease.renewals == 1
    with pytest.raises(LeaseRevoked):
        published.renew(READER, leased.lease)


def test_f17_policy_hears_nothing_of_a_lease_of_others(published: World) -> None:
    leased = published.lease(READER, STABLE, attributes={"site": "north"})
    published.reader("other")
    published.policy.asked.clear()
    with pytest.raises(LeaseNotFoundOrDenied):
        published.renew(caller("other"), leased.lease)
    assert [request.circumstances for request in published.policy.asked] == [
        Circumstances("127.0.0.1")
    ]


def test_f19_disabling_a_version_revokes_its_leases(published: World) -> None:
    published.publish(MODEL, promote=True)
    first, second = published.lease(READER, V1), published.lease(READER, STABLE)
    security = published.security()
    published.states.disable(security, V1)
    with pytest.raises(LeaseRevoked):
        published.renew(READER, first.lease)
    assert published.renew(READER, second.lease).state is LeaseState.LIVE
    published.states.enable(security, V1)
    with pytest.raises(LeaseRevoked):
        published.renew(READER, first.lease)
    assert published.lease(READER, V1).lease.state is LeaseState.LIVE


def test_f61_a_renewal_without_record_is_none(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.clock.advance(HOUR / 2)
    published.audit.broken = lambda record: True
    with pytest.raises(AuditUnavailable):
        published.renew(READER, leased.lease)
    assert published.stored_lease(leased.lease.lease.name) == leased.lease.lease


def test_two_renewals_at_once_count_both_or_conflict(published: World) -> None:
    leased = published.lease(READER, STABLE)
    published.clock.advance(HOUR / 2)
    published.database.before_write = lambda: (published.renew(READER, leased.lease), None)[1]
    try:
        renewed = published.renew(READER, leased.lease)
    except ConcurrentUpdate:
        return
    assert renewed.lease.renewals == 2


# --- revoking and listing ------------------------------------------------------------------------


def test_f20_revoking_is_idempotent(published: World) -> None:
    name = published.lease(READER, STABLE).lease.lease.name
    security = published.security()
    assert published.revoke_leases.one(security, name) == 1
    assert published.revoke_leases.one(security, name) == 0
    with pytest.raises(LeaseRevoked):
        published.renew_lease(READER, name, None)


def test_a_holder_revokes_their_own(published: World) -> None:
    name = published.lease(READER, STABLE).lease.lease.name
    published.reader("other")
    for who in (caller("other"), caller("stranger")):
        with pytest.raises(LeaseNotFoundOrDenied):
            published.revoke_leases.one(who, name)
    assert published.live_leases() == 1
    assert published.revoke_leases.one(caller("reader", instance="e" * 64), name) == 1


def test_f17_a_guessed_lease_is_told_as_a_foreign_one(published: World) -> None:
    name = published.lease(READER, STABLE).lease.lease.name
    guessed = LeaseName("demo", "0" * 32)
    for who, asked in (
        (caller("stranger"), name),
        (caller("stranger"), guessed),
        (published.security(), guessed),
    ):
        with pytest.raises(LeaseNotFoundOrDenied) as caught:
            published.revoke_leases.one(who, asked)
        assert caught.value.metadata.keys() == {"decision_id"}


def test_leases_are_revoked_by_what_matches(published: World) -> None:
    second = published.publish(MODEL).version.version.name
    published.publish(ModelName("demo", "voice"))
    other = published.reader("other")
    security = published.security()

    def issue() -> None:
        for who in (READER, other):
            for reference in (V1, second, stable(ModelName("demo", "voice"))):
                published.lease(who, reference)

    matching = published.revoke_leases.matching
    for count, given in (
        (3, {"principal": READER.principal.id}),
        (4, {"model": MODEL}),
        (2, {"model": second}),
        (1, {"model": V1, "principal": other.principal.id}),
        (3, {"instance": other.principal.instance}),
        (0, {"principal": "spiffe://demo.example/nobody"}),
    ):
        issue()
        assert matching(security, DEMO, **given) == count
        assert matching(security, DEMO, **given) == 0
        matching(security, DEMO, instance=READER.principal.instance)
        matching(security, DEMO, instance=other.principal.instance)
        assert published.live_leases() == 0


def test_revoking_by_nothing_or_across_projects_is_refused(published: World) -> None:
    security = published.security()
    with pytest.raises(InvalidField):
        published.revoke_leases.matching(security, DEMO)
    with pytest.raises(InvalidField):
        published.revoke_leases.matching(security, DEMO, model=ModelName("other", "face"))
    for who, parent, model in (
        (caller("stranger"), DEMO, MODEL),
        (READER, DEMO, None),
        (security, ProjectName("absent"), None),
        (security, DEMO, ModelName("demo", "absent")),
    ):
        with pytest.raises(ModelNotFoundOrDenied):
            published.revoke_leases.matching(who, parent, model=model, principal="p")


def test_leases_are_listed_newest_first_with_their_state(published: World) -> None:
    security, other = published.security(), published.reader("other")
    names = []
    for who in (READER, other, READER):
        names.append(published.lease(who, STABLE).lease.lease.name)
        published.clock.advance(timedelta(minutes=1))
    published.revoke_leases.one(security, names[1])

    live = published.list_leases(security, DEMO, 0, "")
    assert [view.lease.name for view in live.items] == [names[2], names[0]]
    ended = published.list_leases(security, DEMO, 0, "", show_ended=True)
    assert [view.state for view in ended.items] == [
        LeaseState.LIVE,
        LeaseState.REVOKED,
        LeaseState.LIVE,
    ]
    of_other = published.list_leases(
        security, DEMO, 0, "", principal=other.principal.id, show_ended=True
    )
    assert [view.lease.name for view in of_other.items] == [names[1]]
    first = published.list_leases(security, DEMO, 1, "", model=V1)
    assert len(first.items) == 1
    second = published.list_leases(security, DEMO, 1, first.next_page_token, model=V1)
    assert [view.lease.name for view in second.items] == [names[0]]
    published.clock.advance(HOUR)
    assert published.list_leases(security, DEMO, 0, "").items == []
    with pytest.raises(ModelNotFoundOrDenied):
        published.list_leases(READER, DEMO, 0, "")
    for size in (-1, 1001):
        with pytest.raises(InvalidField):
            published.list_leases(security, DEMO, size, "")
