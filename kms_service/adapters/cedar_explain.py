"""Why an access is permitted or not, by Cedar's partial evaluation.

Partial evaluation is a preview (Cedar says so): nothing here decides anything.
"""

from __future__ import annotations

import json
import re
from typing import Any

import cedarpy

from kms_service.adapters.cedar_policy_set import PolicySet
from kms_service.adapters.cedar_request import NAMESPACE, cedar_request, entities
from kms_service.domain.decisions import AccessRequest
from kms_service.domain.policy import Effect, Explanation, Finding, PolicyText, Verdict

_TRUE: dict[str, Any] = {"Value": True}
_FALSE: dict[str, Any] = {"Value": False}
_PATH_IN_PARENTHESES = re.compile(r"(?<!\w)\(([a-z_]+(?:\.[a-z_]+)*)\)")


def explain(policies: PolicySet, request: AccessRequest, *, circumstances: bool) -> Explanation:
    """How `request` stands, and each policy that speaks of its action and resource.

    Args:
        circumstances: whether those of the request are meant; else they are unknown.
    """
    groups = tuple(sorted({*policies.groups_of(request.principal.id), *request.principal.groups}))
    exact = _residuals(policies, request, principal=True, context=circumstances)
    open_ended = _residuals(policies, request, principal=False, context=False)
    findings = []
    for policy_id in sorted(policies.source):
        asked = open_ended.get(policy_id)
        if asked == _FALSE:
            continue  # speaks of other actions or resources
        findings.append(_finding(policies, policy_id, exact.get(policy_id), asked))
    return Explanation(_verdict(findings), tuple(findings), groups, policies.files.epoch)


def policy_text(policies: PolicySet, policy_id: str) -> PolicyText:
    """One policy of the set."""
    source = policies.source[policy_id]
    return PolicyText(policy_id, Effect(source["effect"]), cedar_text(source))


def _finding(
    policies: PolicySet,
    policy_id: str,
    exact: dict[str, Any] | None,
    asked: dict[str, Any] | None,
) -> Finding:
    text = policy_text(policies, policy_id)
    if exact is None:
        return Finding(text, Verdict.FAILS)
    if exact == _TRUE:
        return Finding(text, Verdict.YES)
    if exact == _FALSE:
        return Finding(text, Verdict.NO, _expression(asked) if asked else "")
    return Finding(text, Verdict.DEPENDS, _expression(exact))


def _verdict(findings: list[Finding]) -> Verdict:
    def any_is(effect: Effect, verdict: Verdict) -> bool:
        return any(each.policy.effect is effect and each.verdict is verdict for each in findings)

    if any(finding.verdict is Verdict.FAILS for finding in findings):
        return Verdict.NO
    if any_is(Effect.FORBID, Verdict.YES):
        return Verdict.NO
    if any_is(Effect.PERMIT, Verdict.YES):
        return Verdict.DEPENDS if any_is(Effect.FORBID, Verdict.DEPENDS) else Verdict.YES
    return Verdict.DEPENDS if any_is(Effect.PERMIT, Verdict.DEPENDS) else Verdict.NO


def _residuals(
    policies: PolicySet, request: AccessRequest, *, principal: bool, context: bool
) -> dict[str, dict[str, Any]]:
    """By policy id, what is left of its conditions; a policy that errs is not among them.

    An empty answer (the schema does not know such a request) leaves all policies erring.
    """
    full = cedar_request(request)
    partial = {
        "principal": _uid_text(full["principal"]) if principal else None,
        "action": _uid_text(full["action"]),
        "resource": _uid_text(full["resource"]),
        "context": full["context"] if context else None,
    }
    known = entities(request.principal, request.resource, policies.groups_of(request.principal.id))
    try:
        result = cedarpy.is_authorized_partial(
            partial, policies.policies, json.dumps(known), policies.schema
        )
    except ValueError:
        return {}
    return {policy_id: _left(residual) for policy_id, residual in result.residuals.items()}


def _left(residual: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a residual as one expression, without what is settled."""
    body = _TRUE
    for condition in residual["conditions"]:
        part = condition["body"]
        if condition["kind"] == "unless":
            part = {"!": {"arg": part}}
        body = {"&&": {"left": body, "right": part}}
    simple = _simplified(body)
    assert isinstance(simple, dict)
    return simple


def _simplified(node: Any) -> Any:
    """`true && x` is x; unknowns are the variables that they stand for."""
    if isinstance(node, list):
        return [_simplified(each) for each in node]
    if not isinstance(node, dict):
        return node
    if "unknown" in node:
        return {"Var": node["unknown"][0]["Value"]}
    if "Value" in node:
        return node
    simple = {key: _simplified(value) for key, value in node.items()}
    if "&&" in simple:
        left, right = simple["&&"]["left"], simple["&&"]["right"]
        if left == _TRUE:
            return right
        if right == _TRUE:
            return left
        if _FALSE in (left, right):
            return _FALSE
    return simple


def _expression(body: dict[str, Any]) -> str:
    """Cedar text of an expression."""
    everything = {"op": "All"}
    policy = {
        "effect": "permit",
        "principal": everything,
        "action": everything,
        "resource": everything,
        "conditions": [{"kind": "when", "body": body}],
    }
    text = cedar_text(policy)
    inner = text[text.index("{") + 1 : text.rindex("}")]
    while (shorter := _PATH_IN_PARENTHESES.sub(r"\1", inner)) != inner:
        inner = shorter
    return " ".join(inner.split())


def cedar_text(policy: dict[str, Any]) -> str:
    """A policy in Cedar's JSON form, as Cedar: without its comments."""
    policies = {"staticPolicies": {"policy": policy}, "templates": {}, "templateLinks": []}
    text = cedarpy.policies_from_json_str(json.dumps(policies))
    return cedarpy.format_policies(text).strip()


def _uid_text(uid: dict[str, str]) -> str:
    """Cedar's notation of an entity. Ids are free of control characters."""
    escaped = uid["id"].replace("\\", "\\\\").replace('"', '\\"')
    assert uid["type"].startswith(NAMESPACE)
    return f'{uid["type"]}::"{escaped}"'
