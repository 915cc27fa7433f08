"""Who calls, and what policy says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from kms_service.domain.decisions import AccessRequest, Decision
from kms_service.domain.identity import Principal, VerifiedToken
from kms_service.domain.policy import Explanation, PolicySetFiles, PolicySetView, Rehearsal


class TokenVerifier(Protocol):
    def verify(self, token: str) -> VerifiedToken:
        """Who a bearer token is of. Verified once a token; its times at each call.

        Raises:
            TokenInvalid: it is not one of ours, not now, or not for us.
            IdentityProviderUnavailable: the issuer's keys cannot be had.
        """


class PolicyEngine(Protocol):
    def decide(self, request: AccessRequest) -> Decision:
        """Default deny; forbid wins; any evaluation error denies. Does not raise for a denial.

        Raises:
            PolicyUnavailable: no policy set is in force.
        """


class PolicyQuestions(Protocol):
    """What can be asked about the policy set in force. Each raises PolicyUnavailable if there is
    none."""

    def view(self) -> PolicySetView: ...

    def named_principals(self) -> Sequence[Principal]:
        """Those that policies, groups or canary cases name by a whole id."""

    def explain(self, request: AccessRequest, *, circumstances: bool) -> Explanation:
        """How a request stands, and why. Without `circumstances` those are taken as unknown."""

    def rehearse(self, files: PolicySetFiles, requests: Iterable[AccessRequest]) -> Rehearsal:
        """Decide `requests` under the set in force and under another."""
