"""Questions about policy: the set in force, why, who can, and what another set would change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from google.protobuf.message import Message
from modelkms_api.v1 import policy_service_pb2 as pb

from modelkms.convert import optional_time
from modelkms.errors import PathUnusable, UsageError
from modelkms.session import Session
from modelkms.types import Info

_CANARIES = "canaries.json"
_GROUPS = "groups.json"


@dataclass(frozen=True, slots=True)
class PolicyInfo(Info):
    """One policy. `effect` is PERMIT or FORBID, `text` Cedar."""

    id: str
    effect: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicySetInfo(Info):
    """The set in force. `epoch`: SHA-256 of all its files."""

    epoch: str
    policies: tuple[PolicyInfo, ...]
    groups: dict[str, tuple[str, ...]]
    canary_cases: int


@dataclass(frozen=True, slots=True)
class FindingInfo(Info):
    """How a policy stands to an access: `verdict` is YES (it applies), NO, DEPENDS or FAILS.
    `missing`: what it asks that is not so, or not known, as a Cedar expression."""

    policy: PolicyInfo
    verdict: str
    missing: str


@dataclass(frozen=True, slots=True)
class ExplanationInfo(Info):
    """How an access stands: `verdict` is YES, NO or DEPENDS (on circumstances of the call).

    `decided`, `decide_time`, `decided_by` are of the recorded decision, if one was asked about.
    """

    principal: str
    action: str
    resource: str
    verdict: str
    findings: tuple[FindingInfo, ...]
    groups: tuple[str, ...]
    epoch: str
    decided: str
    decide_time: datetime | None
    decided_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PermittedInfo(Info):
    """One who can (YES), or may under conditions (DEPENDS; then `missing` tells which)."""

    principal: str
    verdict: str
    policies: tuple[str, ...]
    missing: str
    last_seen_time: datetime | None
    last_use_time: datetime | None


@dataclass(frozen=True, slots=True)
class WhoCanInfo(Info):
    principals: tuple[PermittedInfo, ...]
    known_principals: int


@dataclass(frozen=True, slots=True)
class DecisionChangeInfo(Info):
    """Equal requests that another set decides otherwise. `decision_id` is of the newest."""

    decision_id: str
    decide_time: datetime | None
    decisions: int
    principal: str
    action: str
    resource: str
    permitted_now: bool
    permitted_then: bool
    policies: tuple[str, ...]
    lease_ttl_now: timedelta | None
    lease_ttl_then: timedelta | None


@dataclass(frozen=True, slots=True)
class DryRunInfo(Info):
    """What another set would change. `refusal`: why the service would not load it, or empty."""

    refusal: str
    changes: tuple[DecisionChangeInfo, ...]
    replayed: int
    oldest_time: datetime | None
    inexact: int
    truncated: bool


def get_policy_set(session: Session) -> PolicySetInfo:
    answer = session.call(session.policies.GetPolicySet, pb.GetPolicySetRequest())
    return PolicySetInfo(
        epoch=answer.epoch,
        policies=tuple(_policy(each) for each in answer.policies),
        groups={group.name: tuple(group.members) for group in answer.groups},
        canary_cases=answer.canary_cases,
    )


def explain(
    session: Session,
    *,
    decision_id: str = "",
    principal: str = "",
    action: str = "",
    resource: str = "",
) -> ExplanationInfo:
    request = pb.ExplainAccessRequest(
        decision_id=decision_id, principal=principal, action=action, resource=resource
    )
    answer = session.call(session.policies.ExplainAccess, request)
    return ExplanationInfo(
        principal=answer.principal,
        action=answer.action,
        resource=answer.resource,
        verdict=_verdict(answer.verdict),
        findings=tuple(
            FindingInfo(_policy(each.policy), _verdict(each.verdict), each.missing)
            for each in answer.findings
        ),
        groups=tuple(answer.groups),
        epoch=answer.epoch,
        decided=_verdict(answer.decided) if answer.decided else "",
        decide_time=optional_time(answer, "decide_time"),
        decided_by=tuple(answer.decided_by),
    )


def who_can(session: Session, action: str, resource: str) -> WhoCanInfo:
    request = pb.WhoCanRequest(action=action, resource=resource)
    answer = session.call(session.policies.WhoCan, request)
    return WhoCanInfo(
        principals=tuple(
            PermittedInfo(
                principal=each.principal,
                verdict=_verdict(each.verdict),
                policies=tuple(each.policies),
                missing=each.missing,
                last_seen_time=optional_time(each, "last_seen_time"),
                last_use_time=optional_time(each, "last_use_time"),
            )
            for each in answer.principals
        ),
        known_principals=answer.known_principals,
    )


def dry_run(session: Session, path: Path) -> DryRunInfo:
    answer = session.call(session.policies.DryRunPolicySet, read_policy_set(path))
    return DryRunInfo(
        refusal=answer.refusal,
        changes=tuple(_change(each) for each in answer.changes),
        replayed=answer.replayed,
        oldest_time=optional_time(answer, "oldest_time"),
        inexact=answer.inexact,
        truncated=answer.truncated,
    )


def read_policy_set(path: Path) -> pb.DryRunPolicySetRequest:
    """A folder's set; of a single file, its policies with canaries and groups as they are.

    Raises:
        PathUnusable: it cannot be read.
        UsageError: it holds no policies.
    """
    try:
        if path.is_dir():
            files = sorted(path.glob("*.cedar"))
            canaries, groups = _text_of(path / _CANARIES), _text_of(path / _GROUPS)
        else:
            files, canaries, groups = [path], "", ""
        policies = {file.name: file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeDecodeError) as error:
        raise PathUnusable(f"{path} cannot be read") from error
    if not policies:
        raise UsageError(f"there are no *.cedar files in {path}")
    return pb.DryRunPolicySetRequest(policies=policies, canaries=canaries, groups=groups)


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _policy(message: pb.Policy) -> PolicyInfo:
    effect = {pb.POLICY_EFFECT_PERMIT: "PERMIT", pb.POLICY_EFFECT_FORBID: "FORBID"}
    return PolicyInfo(message.id, effect.get(message.effect, "UNKNOWN"), message.text)


def _verdict(value: pb.PolicyVerdict.ValueType) -> str:
    if value not in pb.PolicyVerdict.values():
        return "UNKNOWN"
    return pb.PolicyVerdict.Name(value).removeprefix("POLICY_VERDICT_")


def _change(message: pb.DecisionChange) -> DecisionChangeInfo:
    return DecisionChangeInfo(
        decision_id=message.decision_id,
        decide_time=optional_time(message, "decide_time"),
        decisions=message.decisions,
        principal=message.principal,
        action=message.action,
        resource=message.resource,
        permitted_now=message.permitted_now,
        permitted_then=message.permitted_then,
        policies=tuple(message.policies),
        lease_ttl_now=_span(message, "lease_ttl_now"),
        lease_ttl_then=_span(message, "lease_ttl_then"),
    )


def _span(message: Message, field: str) -> timedelta | None:
    if not message.HasField(field):
        return None
    span: timedelta = getattr(message, field).ToTimedelta()
    return span
