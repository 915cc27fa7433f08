"""What the audit log holds of a call, field by field: an auditor has nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import Project
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    AuditUnavailable,
    InvalidField,
    LeaseLimit,
    LeaseNotFoundOrDenied,
    ModelNotFoundOrDenied,
)
from kms_service.domain.leases import LeaseBounds
from kms_service.domain.names import LeaseName, ModelName, ProjectName, VersionName
from tests.support.usecase_fakes import HOUR, caller
from tests.unit.usecases.world import World

MODEL = ModelName("demo", "face")
V1 = VersionName("demo", "face", 1)
READER = replace(caller("reader"), trace_id="ab" * 16)


@pytest.fixture
def published(world: World) -> World:
    world.publisher()
    world.publish(MODEL)
    world.reader()
    world.audit.take()
    return world


def test_a_lease_is_recorded_with_all_that_tells_who_what_when_and_why(published: World) -> None:
    lease = published.lease(READER, V1).lease.lease
    (record,) = published.audit.take()
    decided = published.policy.asked[-1]
    assert decided.circumstances.suite == lease.suite > 0
    assert asdict(record) == asdict(
        AuditRecord(
            time=published.clock.now(),
            event="LeaseDataKey",
            outcome=Outcome.OK,
            request_id=READER.request_id,
            trace_id="ab" * 16,
            principal=READER.principal.id,
            instance=READER.principal.instance,
            peer=READER.peer,
            resource=str(V1),
            decision_id=record.decision_id,
            policies=("granted",),
            policy_epoch=record.policy_epoch,
            details={
                **record.details,
                "version": str(V1),
                "lease": str(lease.name),
                "expire_time": lease.expire_time.isoformat(),
            },
        )
    )
    assert len(record.decision_id) == 32


def test_a_list_that_was_filtered_item_by_item_is_recorded_as_one(published: World) -> None:
    published.policy.grant("reader", Action.GET_PROJECT)
    published.clock.advance(timedelta(minutes=3))
    page = published.browse.list_projects(READER, 0, "")
    (record,) = published.audit.take()
    assert asdict(record) == asdict(
        AuditRecord(
            time=published.clock.now(),
            event="ListProjects",
            outcome=Outcome.OK,
            request_id=READER.request_id,
            trace_id="ab" * 16,
            principal=READER.principal.id,
            instance=READER.principal.instance,
            peer=READER.peer,
            resource="projects",
            details={"items": str(len(page.items))},
        )
    )
    assert len(page.items) == 1


def test_the_record_says_why_where_the_caller_is_not_told(published: World) -> None:
    """Denied, missing, another's, blocked: one answer, four causes."""
    stranger, other = caller("stranger"), caller("reader", instance="f" * 64)
    lease = published.lease(READER, V1).lease.lease.name
    published.policy.grant("reader", Action.LIST_LEASES)
    published.audit.take()

    def cause(refusal: type[Exception], act: object) -> str:
        assert callable(act)
        with pytest.raises(refusal):
            act()
        (record,) = published.audit.take()
        assert record.outcome is Outcome.DENIED
        assert record.decision_id
        return record.details["cause"]

    denied = ModelNotFoundOrDenied
    assert cause(denied, lambda: published.lease(stranger, V1)) == "denied LeaseDataKey"
    assert cause(denied, lambda: published.lease(READER, replace(V1, number=9))) == "missing"
    gone = LeaseNotFoundOrDenied
    foreign = replace(other, request_id="1" * 32)
    assert cause(gone, lambda: published.renew_lease(foreign, lease, None)) == "foreign"
    missing = LeaseName("demo", "0" * 32)
    assert cause(gone, lambda: published.renew_lease(READER, missing, None)) == "missing"
    published.security()
    published.standing.block(caller("security"), READER.principal.id, "why", None)
    published.audit.take()
    assert cause(denied, lambda: published.lease(READER, V1)) == "blocked"


def test_a_record_that_could_not_be_written_at_first_says_that_nothing_was_answered(
    published: World,
) -> None:
    published.audit.broken = lambda record: record.outcome is Outcome.OK
    with pytest.raises(AuditUnavailable):
        published.lease(READER, V1)
    (record,) = published.audit.take()
    assert (record.outcome, record.reason) == (Outcome.FAILED, "AUDIT_UNAVAILABLE")
    assert record.details["answered"] == "no"


def test_a_field_that_is_wrong_is_named(published: World) -> None:
    with pytest.raises(InvalidField) as caught:
        published.lease(READER, V1, attributes={"": "x"})
    assert caught.value.field.startswith("attributes")


def test_what_policy_allows_lasts_whole_milliseconds(published: World) -> None:
    """As key answers bind it."""
    half = timedelta(microseconds=500)
    published.policy.bounds = LeaseBounds(HOUR + half, 2 * HOUR + half)
    lease = published.lease(READER, V1).lease.lease
    assert lease.expire_time - lease.issue_time == HOUR
    assert lease.absolute_end_time - lease.issue_time == 2 * HOUR


def test_leases_of_other_models_and_projects_do_not_count(published: World) -> None:
    """The same names elsewhere, and another model of the same principal."""
    published.make_master_key("modelkms-other")
    with published.database.write() as tx:
        project = ProjectName("other")
        tx.projects.insert(Project(project, "modelkms-other", published.clock.now()))
    published.publish(ModelName("other", "face"))
    published.publish(ModelName("demo", "voice"))
    published.policy.bounds = replace(published.policy.bounds, max_live=1, one_time=True)
    for name in (VersionName("other", "face", 1), VersionName("demo", "voice", 1), V1):
        published.lease(READER, name)
    published.policy.bounds = replace(published.policy.bounds, one_time=False)
    with pytest.raises(LeaseLimit):
        published.lease(READER, V1)
