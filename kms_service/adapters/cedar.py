"""Policy decisions by Cedar: default deny, forbid wins, any evaluation error denies."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import cedarpy

from kms_service.adapters.cedar_canaries import CanaryCase, stranger_requests
from kms_service.adapters.cedar_policy_set import (
    PolicyFiles,
    PolicySet,
    PolicySetRefused,
    parse_policy_set,
    read_policy_files,
)
from kms_service.adapters.cedar_request import CanonicalRequest, canonical, cedar_request, entities
from kms_service.domain.decisions import AccessRequest, Decision
from kms_service.domain.errors import PolicyUnavailable
from kms_service.domain.leases import LeaseBounds

_CACHED_DECISIONS = 8192


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one set says of one request.

    Attributes:
        permitted: only after a permit, without a forbid, without any error.
        policies: ids of those that decided, sorted.
        failed: whether a policy could not be evaluated.
    """

    permitted: bool
    policies: tuple[str, ...]
    failed: bool = False


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """What holds whatever policies say.

    Attributes:
        default_ttl: where no deciding policy has `@lease_ttl`.
        max_ttl: upper bound of every lease, renewals included.
        max_offline: where no deciding policy has `@max_offline`.
    """

    default_ttl: timedelta
    max_ttl: timedelta
    max_offline: timedelta = timedelta(hours=24)

    def bounds(self, of: PolicySet, policies: Iterable[str]) -> LeaseBounds:
        """Of the deciding policies the longest durations, for each grants by itself what it says;
        and the strictest bounds, for those are there to restrict."""
        terms = [of.terms[policy] for policy in policies if policy in of.terms]
        ttl = _most(term.ttl for term in terms) or self.default_ttl
        longest = min(_most(term.max_ttl for term in terms) or self.max_ttl, self.max_ttl)
        return LeaseBounds(
            min(ttl, longest),
            longest,
            max_renewals=_least(term.max_renewals for term in terms),
            max_live=_least(term.max_live for term in terms),
            one_time=any(term.one_time for term in terms),
            max_offline=min(
                (term.max_offline for term in terms if term.max_offline is not None),
                default=self.max_offline,
            ),
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    permitted: bool
    policies: tuple[str, ...]
    lease_bounds: LeaseBounds


class DecidingSet:
    """A set and the answers it gave: they go together, so no answer outlives its set."""

    def __init__(
        self,
        policies: PolicySet,
        limits: LeaseLimits,
        looked_up: Callable[[bool], None] = lambda _found: None,
    ) -> None:
        self.policies = policies
        self.epoch = policies.files.epoch
        self._limits = limits
        self._looked_up = looked_up
        self._lock = threading.Lock()
        self._answers: OrderedDict[CanonicalRequest, _Answer] = OrderedDict()

    def decision(self, request: AccessRequest) -> Decision:
        """A decision of its own each time, of an answer that may be known."""
        answer = self._answer(request)
        return Decision(
            id=os.urandom(16).hex(),
            permitted=answer.permitted,
            policies=answer.policies,
            lease_bounds=answer.lease_bounds,
            epoch=self.epoch,
        )

    def _answer(self, request: AccessRequest) -> _Answer:
        key = canonical(request)
        with self._lock:
            known = self._answers.get(key)
            if known is not None:
                self._answers.move_to_end(key)
        self._looked_up(known is not None)
        if known is not None:
            return known
        found = evaluate(self.policies, request)
        answer = _Answer(
            found.permitted, found.policies, self._limits.bounds(self.policies, found.policies)
        )
        if found.failed:  # told anew each time: whatever failed may not fail again
            return answer
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > _CACHED_DECISIONS:
                self._answers.popitem(last=False)
        return answer


class CedarPolicyEngine:
    """Implements `domain.ports.PolicyEngine`. Safe to use from many threads.

    Answers are kept by the whole canonical request (time to the minute) and the set that gave
    them. What is no part of a request (version state, blocks, revocations) is no part of policy
    either: it is read in the transaction that commits.

    Args:
        folder: of the policy set; read by `reload()`.
        default_lease_ttl, max_lease_ttl: see `LeaseLimits`.
        looked_up: told of each look for an answer already given, whether it was there.
    """

    def __init__(
        self,
        folder: Path,
        default_lease_ttl: timedelta,
        max_lease_ttl: timedelta,
        looked_up: Callable[[bool], None] = lambda _found: None,
    ) -> None:
        self._folder = folder
        self._looked_up = looked_up
        self.limits = LeaseLimits(default_lease_ttl, max_lease_ttl)
        self._in_force: DecidingSet | None = None

    def reload(self) -> None:
        """Read the set; it takes effect only if it passes the gate.

        Raises:
            PolicySetRefused: it does not; the set before stays in force.
        """
        before = self._in_force.policies if self._in_force is not None else None
        candidate = self.candidate(read_policy_files(self._folder), before)
        self._in_force = DecidingSet(candidate, self.limits, self._looked_up)

    @staticmethod
    def candidate(files: PolicyFiles, before: PolicySet | None) -> PolicySet:
        """The set of `files`, if it may follow on `before`: the gate.

        Raises:
            PolicySetRefused: it does not parse or validate, a canary does not come out as it
                must, a stranger is let in, or canaries of `before` were dropped unsaid.
        """
        found = parse_policy_set(files)
        for request in stranger_requests():
            if evaluate(found, request).permitted:
                raise PolicySetRefused(f"a stranger is permitted {request.action.value}")
        if problem := next(failures(found, found.canaries.cases), None):
            raise PolicySetRefused(f"canary case: {problem}")
        if before is not None and (dropped := found.canaries.dropped_from(before.canaries)):
            raise PolicySetRefused(
                f"canary case dropped: {dropped.described}; keep it, or put it under `retired`"
            )
        return found

    @property
    def current(self) -> PolicySet:
        """The set in force.

        Raises:
            PolicyUnavailable: there is none.
        """
        if self._in_force is None:
            raise PolicyUnavailable
        return self._in_force.policies

    def decide(self, request: AccessRequest) -> Decision:
        in_force = self._in_force
        if in_force is None:
            raise PolicyUnavailable
        return in_force.decision(request)


def judge(policies: PolicySet, case: CanaryCase) -> str:
    """What is wrong with how a case comes out; empty: nothing."""
    found = evaluate(policies, case.request())
    if found.failed:
        return f"{case.described}: a policy cannot be evaluated"
    if found.permitted is not case.permitted:
        wanted = "permitted" if case.permitted else "refused"
        return f"{case.described} must be {wanted}"
    return ""


def failures(policies: PolicySet, cases: Iterable[CanaryCase]) -> Iterator[str]:
    """What is wrong, case by case."""
    return filter(None, (judge(policies, case) for case in cases))


def evaluate(policies: PolicySet, request: AccessRequest) -> Evaluation:
    """Past any cache.

    Cedar skips a policy that errs: a `forbid` that errs would forbid nothing. So any error denies.
    """
    groups = policies.groups_of(request.principal.id)
    try:
        result = cedarpy.is_authorized(
            cedar_request(request),
            policies.policies,
            json.dumps(entities(request.principal, request.resource, groups)),
            policies.schema,
        )
    except ValueError:
        return Evaluation(False, (), failed=True)
    diagnostics = result.diagnostics
    failed = bool(diagnostics.errors)
    permitted = result.decision is cedarpy.Decision.Allow and not failed
    return Evaluation(permitted, tuple(sorted(diagnostics.reasons)), failed)


def _most(durations: Iterable[timedelta | None]) -> timedelta | None:
    return max((each for each in durations if each is not None), default=None)


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((each for each in numbers if each is not None), default=None)
