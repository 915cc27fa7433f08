"""PolicyService: questions about policy. Translates only."""

from __future__ import annotations

import re

from modelkms_api.v1 import policy_service_pb2 as pb

from kms_service.domain.decisions import Action, Resource
from kms_service.domain.errors import InvalidField
from kms_service.domain.identity import Principal, principal_of
from kms_service.domain.names import ModelName, ProjectName
from kms_service.domain.policy import Effect, Finding, PolicySetFiles, PolicyText, Verdict
from kms_service.rpc import conversion
from kms_service.rpc.pipeline import Call
from kms_service.usecases.ask_policy import AskPolicy, Change

_VERDICTS = {
    Verdict.YES: pb.POLICY_VERDICT_YES,
    Verdict.NO: pb.POLICY_VERDICT_NO,
    Verdict.DEPENDS: pb.POLICY_VERDICT_DEPENDS,
    Verdict.FAILS: pb.POLICY_VERDICT_FAILS,
}
_EFFECTS = {Effect.PERMIT: pb.POLICY_EFFECT_PERMIT, Effect.FORBID: pb.POLICY_EFFECT_FORBID}
_MAX_FILES = 256


class PolicyServicer:
    def __init__(self, ask: AskPolicy) -> None:
        self._ask = ask

    def get_policy_set(self, request: pb.GetPolicySetRequest, call: Call) -> pb.PolicySet:  # noqa: ARG002 - has no fields
        view = self._ask.policy_set(call.caller)
        return pb.PolicySet(
            epoch=view.epoch,
            policies=[_policy(each) for each in view.policies],
            groups=[
                pb.PolicyGroup(name=name, members=members)
                for name, members in sorted(view.groups.items())
            ],
            canary_cases=view.canary_cases,
        )

    def explain_access(
        self, request: pb.ExplainAccessRequest, call: Call
    ) -> pb.ExplainAccessResponse:
        if request.decision_id:
            if request.principal or request.action or request.resource:
                raise InvalidField("decision_id", "must be given alone")
            if re.fullmatch(r"[0-9a-f]{32}", request.decision_id) is None:
                raise InvalidField("decision_id", "must be 32 lower-case hexadecimal digits")
            explained = self._ask.explain_decision(call.caller, request.decision_id)
        else:
            explained = self._ask.explain_access(
                call.caller,
                _principal(request.principal),
                _action(request.action),
                _resource(request.resource),
            )
        found, decided = explained.explanation, explained.decided
        return pb.ExplainAccessResponse(
            principal=explained.request.principal.id,
            action=explained.request.action.value,
            resource=_resource_name(explained.request.resource),
            decided=_decided(decided.permitted) if decided else pb.POLICY_VERDICT_UNSPECIFIED,
            decide_time=conversion.timestamp(decided.request.time if decided else None),
            decided_by=decided.policies if decided else (),
            verdict=_VERDICTS[found.verdict],
            findings=[_finding(each) for each in found.findings],
            groups=found.groups,
            epoch=found.epoch,
        )

    def who_can(self, request: pb.WhoCanRequest, call: Call) -> pb.WhoCanResponse:
        found = self._ask.who_can(call.caller, _action(request.action), _resource(request.resource))
        return pb.WhoCanResponse(
            principals=[
                pb.PermittedPrincipal(
                    principal=each.principal,
                    verdict=_VERDICTS[each.verdict],
                    policies=each.policies,
                    last_seen_time=conversion.timestamp(each.last_seen),
                    last_use_time=conversion.timestamp(each.last_use),
                    missing=each.missing,
                )
                for each in found.able
            ],
            known_principals=found.known,
        )

    def dry_run_policy_set(
        self, request: pb.DryRunPolicySetRequest, call: Call
    ) -> pb.DryRunPolicySetResponse:
        if not 0 < len(request.policies) <= _MAX_FILES:
            raise InvalidField("policies", f"must be 1 to {_MAX_FILES} files")
        files = PolicySetFiles(
            dict(request.policies), request.canaries or None, request.groups or None
        )
        found = self._ask.dry_run(call.caller, files)
        return pb.DryRunPolicySetResponse(
            refusal=found.refusal,
            changes=[_change(each) for each in found.changes],
            replayed=found.replayed,
            oldest_time=conversion.timestamp(found.oldest),
            inexact=found.inexact,
            truncated=found.truncated,
        )


def _principal(value: str) -> Principal:
    try:
        return principal_of(conversion.text(value, "principal"))
    except ValueError as error:
        raise InvalidField(
            "principal", "must be a SPIFFE ID, or oidc:{issuer name}:{subject}"
        ) from error


def _action(value: str) -> Action:
    try:
        return Action(value)
    except ValueError as error:
        raise InvalidField("action", "must be a verb of the policy schema") from error


def _resource(value: str) -> ProjectName | ModelName:
    if "/models/" in value:
        return ModelName.parse(value, "resource")
    return ProjectName.parse(value, "resource")


def _resource_name(resource: Resource) -> str:
    if not resource.project:
        return ""
    project = f"projects/{resource.project}"
    return project if resource.model is None else f"{project}/models/{resource.model}"


def _decided(permitted: bool) -> pb.PolicyVerdict.ValueType:
    return pb.POLICY_VERDICT_YES if permitted else pb.POLICY_VERDICT_NO


def _policy(policy: PolicyText) -> pb.Policy:
    return pb.Policy(id=policy.id, effect=_EFFECTS[policy.effect], text=policy.text)


def _finding(finding: Finding) -> pb.PolicyFinding:
    return pb.PolicyFinding(
        policy=_policy(finding.policy),
        verdict=_VERDICTS[finding.verdict],
        missing=finding.missing,
    )


def _change(change: Change) -> pb.DecisionChange:
    request, now, then = change.newest.request, change.now, change.then
    terms = now.permitted and then.permitted
    return pb.DecisionChange(
        decision_id=change.newest.id,
        decide_time=conversion.timestamp(request.time),
        decisions=change.decisions,
        principal=request.principal.id,
        action=request.action.value,
        resource=_resource_name(request.resource),
        permitted_now=now.permitted,
        permitted_then=then.permitted,
        policies=then.policies,
        lease_ttl_now=conversion.duration(now.lease_bounds.ttl) if terms else None,
        lease_ttl_then=conversion.duration(then.lease_bounds.ttl) if terms else None,
    )
