"""Blocked principals and frozen projects: nothing is issued, whatever policy says (F67)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    AuditUnavailable,
    InvalidField,
    LeaseLimit,
    LeaseMaxTtl,
    LeaseNotFoundOrDenied,
    LeaseRevoked,
    LeaseUsedUp,
    ModelNotFoundOrDenied,
    ProjectFrozen,
    ServiceError,
)
from kms_service.domain.identity import Caller
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.usecases.answers import LeaseView
from tests.support.usecase_fakes import HOUR, caller
from tests.unit.usecases.world import World, stable

MODEL = ModelName("demo", "face")
V1 = VersionName("demo", "face", 1)
DEMO = ProjectName("demo")
READER, OFFICER = caller("reader"), caller("security")


@pytest.fixture
def published(world: World) -> World:
    """A version that `reader` may lease, and `security`."""
    world.publisher()
    world.publish(MODEL)
    world.reader()
    world.security()
    world.audit.take()
    world.master_keys.calls.clear()
    return world


def refused(error: type[ServiceError], act: Callable[[], object]) -> ServiceError:
    with pytest.raises(error) as caught:
        act()
    return caught.value


# --- blocks --------------------------------------------------------------------------------------


def test_f67_a_blocked_principal_sees_what_a_stranger_sees(published: World) -> None:
    lease = published.lease(READER, stable(MODEL)).lease
    block, revoked = published.standing.block(OFFICER, READER.principal.id, "stolen laptop", None)
    assert (block.blocked_by, revoked) == (OFFICER.principal.id, 1)
    published.audit.take()
    published.master_keys.calls.clear()

    stranger = caller("stranger")
    for who in (READER, stranger):
        for act in _looking(published, who):
            error = refused(ModelNotFoundOrDenied, act)
            assert error.message == ModelNotFoundOrDenied.default_message
        for act in _holding(published, who, lease):
            refused(LeaseNotFoundOrDenied, act)
        assert published.browse.list_projects(who, 0, "").items == []
    assert published.master_keys.calls == []
    causes = {
        record.principal: record.details["cause"]
        for record in published.audit.take()
        if record.event == "LeaseDataKey"
    }
    assert causes == {
        READER.principal.id: "blocked",
        stranger.principal.id: "denied LeaseDataKey",
    }


def _looking(world: World, who: Caller) -> list[Callable[[], object]]:
    return [
        lambda: world.lease(who, stable(MODEL)),
        lambda: world.lease(who, VersionName("demo", "face", 9)),
        lambda: world.resolve_model(who, stable(MODEL), {}),
        lambda: world.browse.get_version(who, V1),
        lambda: world.browse.list_models(who, DEMO, 0, ""),
        lambda: world.read(who, V1),
    ]


def _holding(world: World, who: Caller, lease: LeaseView) -> list[Callable[[], object]]:
    return [
        lambda: world.renew(who, lease),
        lambda: world.revoke_leases.one(who, lease.lease.name),
    ]


def test_f67_a_fresh_certificate_of_the_same_identity_does_not_help(published: World) -> None:
    published.standing.block(OFFICER, READER.principal.id, "why", None)
    refused(
        ModelNotFoundOrDenied,
        lambda: published.lease(caller("reader", instance="f" * 64), stable(MODEL)),
    )


def test_f67_a_block_that_comes_while_vault_works_is_obeyed(published: World) -> None:
    published.master_keys.meanwhile = lambda: published.standing.block(
        OFFICER, READER.principal.id, "why", None
    )
    refused(ModelNotFoundOrDenied, lambda: published.lease(READER, stable(MODEL)))
    assert published.live_leases() == 0


def test_f67_a_blocked_publisher_gets_no_key(published: World) -> None:
    publisher = caller("publisher")
    published.master_keys.meanwhile = lambda: published.standing.block(
        OFFICER, publisher.principal.id, "why", None
    )
    refused(ModelNotFoundOrDenied, lambda: published.create_version(publisher, MODEL))
    assert published.version(VersionName("demo", "face", 2)) is None


def test_a_block_ends_by_itself(published: World) -> None:
    published.standing.block(OFFICER, READER.principal.id, "why", published.clock.now() + HOUR)
    assert len(published.standing.list_blocks(OFFICER, 0, "").items) == 1
    published.clock.advance(HOUR - timedelta(milliseconds=1))
    refused(ModelNotFoundOrDenied, lambda: published.lease(READER, stable(MODEL)))
    published.clock.advance(timedelta(milliseconds=1))
    published.lease(READER, stable(MODEL))
    assert published.standing.list_blocks(OFFICER, 0, "").items == []


def test_unblocking_revives_no_lease(published: World) -> None:
    lease = published.lease(READER, stable(MODEL)).lease
    published.standing.block(OFFICER, READER.principal.id, "why", None)
    assert published.standing.unblock(OFFICER, READER.principal.id)
    assert not published.standing.unblock(OFFICER, READER.principal.id)
    refused(LeaseRevoked, lambda: published.renew(READER, lease))
    published.lease(READER, stable(MODEL))


def test_f67_blocks_and_freezes_survive_a_restart(published: World) -> None:
    published.standing.block(OFFICER, READER.principal.id, "why", None)
    published.standing.freeze(OFFICER, DEMO, "why")
    published.reopen_database()
    refused(ModelNotFoundOrDenied, lambda: published.lease(READER, stable(MODEL)))
    published.standing.unblock(OFFICER, READER.principal.id)
    published.reopen_database()
    refused(ProjectFrozen, lambda: published.lease(READER, stable(MODEL)))


def test_who_is_blocked_and_why_is_recorded_and_listed(published: World) -> None:
    until = published.clock.now() + HOUR
    published.standing.block(OFFICER, READER.principal.id, "first", None)
    published.standing.block(OFFICER, READER.principal.id, "stolen laptop", until)
    record = published.audit.take()[-1]
    assert (record.event, record.details["of_principal"]) == ("BlockPrincipal", READER.principal.id)
    assert (record.details["why"], record.details["until"]) == ("stolen laptop", until.isoformat())
    (block,) = published.standing.list_blocks(OFFICER, 0, "").items
    assert (block.principal, block.reason, block.until) == (
        READER.principal.id,
        "stolen laptop",
        until,
    )


def test_what_may_not_be_blocked(published: World) -> None:
    now = published.clock.now()
    for principal, until in (
        ("reader", None),
        (OFFICER.principal.id, None),
        (READER.principal.id, now),
    ):
        with pytest.raises(InvalidField):
            published.standing.block(OFFICER, principal, "why", until)


def test_only_officers_block_and_freeze(published: World) -> None:
    standing = published.standing
    acts: tuple[Callable[[], object], ...] = (
        lambda: standing.block(READER, "spiffe://demo.example/x", "why", None),
        lambda: standing.unblock(READER, "spiffe://demo.example/x"),
        lambda: standing.list_blocks(READER, 0, ""),
        lambda: standing.freeze(READER, DEMO, "why"),
        lambda: standing.unfreeze(READER, DEMO),
        lambda: standing.list_freezes(READER, 0, ""),
        lambda: standing.freeze(OFFICER, ProjectName("missing"), "why"),
        lambda: standing.unfreeze(OFFICER, ProjectName("missing")),
    )
    for act in acts:
        refused(ModelNotFoundOrDenied, act)


def test_f61_a_block_without_record_is_none(published: World) -> None:
    lease = published.lease(READER, stable(MODEL)).lease
    published.audit.broken = lambda record: record.event in ("BlockPrincipal", "FreezeProject")
    refused(
        AuditUnavailable,
        lambda: published.standing.block(OFFICER, READER.principal.id, "why", None),
    )
    refused(AuditUnavailable, lambda: published.standing.freeze(OFFICER, DEMO, "why"))
    published.renew(READER, lease)


# --- freezes -------------------------------------------------------------------------------------


def test_f67_a_frozen_project_issues_nothing(published: World) -> None:
    lease = published.lease(READER, stable(MODEL)).lease
    created = published.create_version(caller("publisher"), MODEL, request_id=_REQUEST)
    assert created.version.version.name.number == 2
    _, revoked = published.standing.freeze(OFFICER, DEMO, "incident 7")
    assert revoked == 1
    refused(ProjectFrozen, lambda: published.lease(READER, stable(MODEL)))
    refused(LeaseRevoked, lambda: published.renew(READER, lease))
    refused(ProjectFrozen, lambda: published.create_version(caller("publisher"), MODEL))
    refused(
        ProjectFrozen,
        lambda: published.create_version(caller("publisher"), MODEL, request_id=_REQUEST),
    )
    # A stranger is not told.
    refused(ModelNotFoundOrDenied, lambda: published.lease(caller("stranger"), stable(MODEL)))
    (freeze,) = published.standing.list_freezes(OFFICER, 0, "").items
    assert (freeze.project, freeze.reason) == (DEMO, "incident 7")

    assert published.standing.unfreeze(OFFICER, DEMO)
    assert not published.standing.unfreeze(OFFICER, DEMO)
    published.lease(READER, stable(MODEL))


def test_f67_a_freeze_that_comes_while_vault_works_is_obeyed(published: World) -> None:
    published.master_keys.meanwhile = lambda: published.standing.freeze(OFFICER, DEMO, "why")
    refused(ProjectFrozen, lambda: published.lease(READER, stable(MODEL)))
    assert published.live_leases() == 0


def test_a_lease_issued_past_a_freeze_is_not_renewed(published: World) -> None:
    lease = published.lease(READER, stable(MODEL)).lease
    published.standing.freeze(OFFICER, DEMO, "why")
    with published.database.write() as tx:  # as if it had been committed a moment later
        stored = tx.leases.get(lease.lease.name)
        assert stored is not None
        late = replace(stored, name=replace(stored.name, lease="e" * 32), revoke_time=None)
        tx.leases.insert(late)
    refused(LeaseRevoked, lambda: published.renew(READER, replace(lease, lease=late)))
    ended = published.stored_lease(late.name)
    assert ended is not None
    assert ended.revoke_time is not None


_REQUEST = "01234567-89ab-cdef-0123-456789abcdef"

# --- bounds of policy ----------------------------------------------------------------------------


def test_f20_renewals_are_bounded_by_policy(published: World) -> None:
    published.policy.bounds = replace(published.policy.bounds, max_renewals=2)
    lease = published.lease(READER, stable(MODEL)).lease
    for _ in range(2):
        lease = published.renew(READER, lease)
    error = refused(LeaseMaxTtl, lambda: published.renew(READER, lease))
    assert "no further renewal" in error.message


def test_live_leases_are_bounded_by_policy(published: World) -> None:
    published.policy.bounds = replace(published.policy.bounds, max_live=2)
    first = published.lease(READER, stable(MODEL)).lease
    published.lease(caller("reader", instance="f" * 64), stable(MODEL))
    refused(LeaseLimit, lambda: published.lease(READER, stable(MODEL)))
    published.policy.grant("other", Action.LEASE_DATA_KEY)
    published.lease(caller("other"), stable(MODEL))
    published.revoke_leases.one(READER, first.lease.name)
    published.lease(READER, stable(MODEL))
    published.clock.advance(HOUR)
    published.lease(READER, stable(MODEL))


def test_a_one_time_lease_is_issued_once(published: World) -> None:
    published.policy.bounds = replace(published.policy.bounds, one_time=True)
    lease = published.lease(READER, stable(MODEL)).lease
    refused(LeaseUsedUp, lambda: published.lease(READER, stable(MODEL)))
    published.revoke_leases.one(READER, lease.lease.name)
    published.clock.advance(24 * HOUR)
    refused(LeaseUsedUp, lambda: published.lease(READER, V1))
    published.publish(MODEL, promote=True)
    published.lease(READER, stable(MODEL))
