"""Policy decisions by Cedar: default deny, forbid wins, any evaluation error denies."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cedarpy

from kms_service.adapters.cedar_policy_set import (
    CanaryCase,
    PolicySet,
    PolicySetRefused,
    read_policy_set,
)
from kms_service.domain.decisions import AccessRequest, Decision, Resource
from kms_service.domain.errors import PolicyUnavailable
from kms_service.domain.identity import Principal
from kms_service.domain.leases import LeaseBounds

_NAMESPACE = "ModelKMS"
_CANARY_TIME = datetime(2026, 1, 1, 12, tzinfo=UTC)


class CedarPolicyEngine:
    """Implements `domain.ports.PolicyEngine`. Safe to use from many threads.

    Args:
        folder: of the policy set; read by `reload()`.
        default_lease_ttl: where no deciding policy has `@lease_ttl`.
        max_lease_ttl: upper bound of every lease, renewals included, whatever policies say.
    """

    def __init__(
        self, folder: Path, default_lease_ttl: timedelta, max_lease_ttl: timedelta
    ) -> None:
        self._folder = folder
        self._default_ttl = default_lease_ttl
        self._max_ttl = max_lease_ttl
        self._set: PolicySet | None = None

    def reload(self) -> None:
        """Read the set; it takes effect only if every canary comes out as it must.

        Raises:
            PolicySetRefused: it does not; the set before stays in force.
        """
        candidate = read_policy_set(self._folder)
        for number, case in enumerate(candidate.canaries, start=1):
            permitted, _, errors = _evaluate(candidate, _canary_request(case))
            if errors or permitted is not case.permitted:
                wanted = "permitted" if case.permitted else "refused"
                raise PolicySetRefused(
                    f"canary case {number} ({case.principal} {case.action} "
                    f"{case.project}/{case.model or ''}) must be {wanted}"
                )
        self._set = candidate

    def decide(self, request: AccessRequest) -> Decision:
        current = self._set
        if current is None:
            raise PolicyUnavailable
        permitted, policies, _ = _evaluate(current, request)
        terms = [current.terms[policy] for policy in policies if policy in current.terms]
        ttl = _most(term.ttl for term in terms) or self._default_ttl
        longest = _most(term.max_ttl for term in terms) or self._max_ttl
        longest = min(longest, self._max_ttl)
        return Decision(
            id=secrets.token_hex(16),
            permitted=permitted,
            policies=policies,
            lease_bounds=LeaseBounds(min(ttl, longest), longest),
        )


def _evaluate(current: PolicySet, request: AccessRequest) -> tuple[bool, tuple[str, ...], bool]:
    """Whether permitted, the ids of the policies that decided, whether evaluation had errors.

    Cedar skips a policy that errs: a `forbid` that errs would forbid nothing. So any error denies.
    """
    try:
        result = cedarpy.is_authorized(
            _cedar_request(request),
            current.policies,
            json.dumps(_entities(request.principal, request.resource)),
            current.schema,
        )
    except ValueError:
        return False, (), True
    diagnostics = result.diagnostics
    errors = bool(diagnostics.errors)
    permitted = result.decision is cedarpy.Decision.Allow and not errors
    return permitted, tuple(sorted(diagnostics.reasons)), errors


def _cedar_request(request: AccessRequest) -> dict[str, Any]:
    time = request.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "principal": _principal_uid(request.principal),
        "action": {"type": f"{_NAMESPACE}::Action", "id": request.action.value},
        "resource": _resource_uid(request.resource),
        "context": {
            "time": {"__extn": {"fn": "datetime", "arg": time}},
            "instance": request.principal.instance,
            "attributes": _pairs(request.attributes),
        },
    }


def _entities(principal: Principal, resource: Resource) -> list[dict[str, Any]]:
    project = {"type": f"{_NAMESPACE}::Project", "id": resource.project}
    entities: list[dict[str, Any]] = [
        {
            "uid": _principal_uid(principal),
            "attrs": {"trust_domain": principal.trust_domain, "path": principal.path},
            "parents": [],
        },
        {"uid": project, "attrs": {}, "parents": []},
    ]
    if resource.model is not None:
        entities.append(
            {
                "uid": _resource_uid(resource),
                "attrs": {"project": resource.project, "model": resource.model},
                "tags": dict(resource.labels),
                "parents": [project],
            }
        )
    return entities


def _principal_uid(principal: Principal) -> dict[str, str]:
    return {"type": f"{_NAMESPACE}::Principal", "id": principal.id}


def _resource_uid(resource: Resource) -> dict[str, str]:
    if resource.model is None:
        return {"type": f"{_NAMESPACE}::Project", "id": resource.project}
    return {"type": f"{_NAMESPACE}::Model", "id": f"{resource.project}/{resource.model}"}


def _canary_request(case: CanaryCase) -> AccessRequest:
    trust_domain, slash, path = case.principal.removeprefix("spiffe://").partition("/")
    return AccessRequest(
        principal=Principal(case.principal, trust_domain, slash + path, instance="0" * 64),
        action=case.action,
        resource=Resource(case.project, case.model, case.labels),
        time=_CANARY_TIME,
        attributes=case.attributes,
    )


def _pairs(attributes: Mapping[str, str]) -> list[str]:
    return sorted(f"{key}={value}" for key, value in attributes.items())


def _most(durations: Iterable[timedelta | None]) -> timedelta | None:
    """The most generous: each permit that decided grants by itself what it says."""
    return max((each for each in durations if each is not None), default=None)
