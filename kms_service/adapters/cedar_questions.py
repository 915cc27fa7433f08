"""Questions about policy: what is in force, why, and what another set would decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kms_service.adapters.cedar import CedarPolicyEngine, DecidingSet
from kms_service.adapters.cedar_explain import explain, policy_text
from kms_service.adapters.cedar_policy_set import PolicyFiles, PolicySetRefused, parse_policy_set
from kms_service.domain.decisions import AccessRequest
from kms_service.domain.identity import Principal
from kms_service.domain.policy import Explanation, PolicySetFiles, PolicySetView, Rehearsal


class CedarPolicyQuestions:
    """Implements `domain.ports.PolicyQuestions` on the engine's set in force."""

    def __init__(self, engine: CedarPolicyEngine) -> None:
        self._engine = engine

    def view(self) -> PolicySetView:
        current = self._engine.current
        return PolicySetView(
            epoch=current.files.epoch,
            policies=tuple(policy_text(current, each) for each in sorted(current.source)),
            groups=current.groups,
            canary_cases=len(current.canaries.cases),
        )

    def named_principals(self) -> Sequence[Principal]:
        return list(self._engine.current.named_principals())

    def explain(self, request: AccessRequest, *, circumstances: bool) -> Explanation:
        return explain(self._engine.current, request, circumstances=circumstances)

    def rehearse(self, files: PolicySetFiles, requests: Iterable[AccessRequest]) -> Rehearsal:
        current, limits = self._engine.current, self._engine.limits
        candidate = PolicyFiles(
            files.policies,
            current.files.canaries if files.canaries is None else files.canaries,
            current.files.groups if files.groups is None else files.groups,
        )
        refusal = ""
        try:
            CedarPolicyEngine.candidate(candidate, current)
        except PolicySetRefused as error:
            refusal = str(error)
        try:
            other = DecidingSet(parse_policy_set(candidate), limits)
        except PolicySetRefused:
            return Rehearsal(refusal)
        today = DecidingSet(current, limits)
        return Rehearsal(
            refusal,
            tuple((today.decision(request), other.decision(request)) for request in requests),
        )
