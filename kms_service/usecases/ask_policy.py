"""Questions about policy: what is in force, why somebody may or may not, who may, and what another
set would change. None of them decides or changes anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from kms_service.domain.decisions import (
    AccessRequest,
    Action,
    Decision,
    RecordedDecision,
    Resource,
)
from kms_service.domain.errors import DecisionNotFoundOrDenied
from kms_service.domain.identity import Caller, Principal
from kms_service.domain.names import ModelName, ProjectName, ServiceName
from kms_service.domain.policy import (
    Effect,
    Explanation,
    PolicySetFiles,
    PolicySetView,
    Verdict,
)
from kms_service.domain.ports import Clock, Database, PolicyQuestions
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.decision_journal import KEPT_DECISIONS, DecisionJournal

LISTED_CHANGES = 1_000

Target = ProjectName | ModelName


@dataclass(frozen=True, slots=True)
class ExplainedAccess:
    """`decided` is the recorded decision, if one was asked about."""

    request: AccessRequest
    explanation: Explanation
    decided: RecordedDecision | None = None


@dataclass(frozen=True, slots=True)
class Ability:
    """That a principal can, or may under conditions."""

    principal: str
    verdict: Verdict
    policies: tuple[str, ...]
    missing: str
    last_seen: datetime | None
    last_use: datetime | None


@dataclass(frozen=True, slots=True)
class Abilities:
    """`known`: how many principals were asked about."""

    able: tuple[Ability, ...]
    known: int


@dataclass(frozen=True, slots=True)
class Change:
    """Equal requests that would be decided otherwise. `newest` is the newest of them."""

    newest: RecordedDecision
    decisions: int
    now: Decision
    then: Decision


@dataclass(frozen=True, slots=True)
class DryRun:
    """What another set would change, newest first."""

    refusal: str
    changes: tuple[Change, ...]
    replayed: int
    oldest: datetime | None
    inexact: int
    truncated: bool


class AskPolicy:
    def __init__(
        self,
        *,
        gate: Gate,
        database: Database,
        questions: PolicyQuestions,
        journal: DecisionJournal,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._database = database
        self._questions = questions
        self._journal = journal
        self._clock = clock

    def policy_set(self, caller: Caller) -> PolicySetView:
        """The set in force.

        Raises:
            ModelNotFoundOrDenied: not permitted.
        """
        with self._gate.admit(caller, Action.GET_POLICY_SET, ServiceName()) as permit:
            view = self._questions.view()
            permit.record(epoch=view.epoch)
            return view

    def explain_decision(self, caller: Caller, decision_id: str) -> ExplainedAccess:
        """A recorded decision, and how the same request stands now.

        Raises:
            DecisionNotFoundOrDenied: not recorded (any more), or not permitted on its resource.
        """
        self._journal.flush()
        with self._database.read() as tx:
            decided = tx.decisions.get(decision_id)
        # Of an unknown decision policy is asked as of one about the service: told alike.
        on = _name_of(decided.request.resource) if decided else ServiceName()
        with self._gate.admit(
            caller, Action.EXPLAIN_ACCESS, on, refusal=DecisionNotFoundOrDenied
        ) as permit:
            decided = permit.require(decided)
            explanation = self._questions.explain(decided.request, circumstances=True)
            permit.record(explained=decision_id)
            return ExplainedAccess(decided.request, explanation, decided)

    def explain_access(
        self, caller: Caller, principal: Principal, action: Action, resource: Target
    ) -> ExplainedAccess:
        """How it stands if `principal` does this, as far as is known of it from earlier calls;
        the circumstances of the call are unknown.

        Raises:
            ModelNotFoundOrDenied: not permitted. A resource need not exist.
        """
        self._journal.flush()
        with self._gate.admit(caller, Action.EXPLAIN_ACCESS, resource) as permit:
            with self._database.read() as tx:
                seen = tx.decisions.principals().get(principal.id)
            known = seen[0] if seen else principal
            request = self._request(permit, known, action, resource)
            explanation = self._questions.explain(request, circumstances=False)
            permit.record(explained_principal=principal.id, explained_action=action.value)
            return ExplainedAccess(request, explanation)

    def who_can(self, caller: Caller, action: Action, resource: Target) -> Abilities:
        """Those of the known principals that can, by id.

        Raises:
            ModelNotFoundOrDenied: not permitted. A resource need not exist.
        """
        self._journal.flush()
        with self._gate.admit(caller, Action.WHO_CAN, resource) as permit:
            with self._database.read() as tx:
                seen = tx.decisions.principals()
                uses = tx.decisions.last_uses(action, _resource_of(resource))
            named = {each.id: each for each in self._questions.named_principals()}
            known = named | {principal.id: principal for principal, _ in seen.values()}
            able = []
            for principal in sorted(known.values(), key=lambda each: each.id):
                request = self._request(permit, principal, action, resource)
                explanation = self._questions.explain(request, circumstances=False)
                if explanation.verdict is Verdict.NO:
                    continue
                last_seen = seen[principal.id][1] if principal.id in seen else None
                able.append(_ability(principal, explanation, last_seen, uses.get(principal.id)))
            permit.record(asked_action=action.value, able=len(able), known=len(known))
            return Abilities(tuple(able), len(known))

    def dry_run(self, caller: Caller, files: PolicySetFiles) -> DryRun:
        """What another set would decide otherwise of what was decided lately.

        Raises:
            ModelNotFoundOrDenied: not permitted.
        """
        self._journal.flush()
        with self._gate.admit(caller, Action.DRY_RUN_POLICY_SET, ServiceName()) as permit:
            with self._database.read() as tx:
                recorded = tx.decisions.newest(KEPT_DECISIONS)
            rehearsal = self._questions.rehearse(files, (each.request for each in recorded))
            changes = _changes(recorded, rehearsal.pairs)
            permit.record(replayed=len(rehearsal.pairs), changes=len(changes))
            return DryRun(
                refusal=rehearsal.refusal,
                changes=tuple(changes[:LISTED_CHANGES]),
                replayed=len(rehearsal.pairs),
                oldest=recorded[-1].request.time if rehearsal.pairs else None,
                inexact=sum(each.redacted for each in recorded) if rehearsal.pairs else 0,
                truncated=len(changes) > LISTED_CHANGES,
            )

    def _request(
        self, permit: Permit, principal: Principal, action: Action, resource: Target
    ) -> AccessRequest:
        of = _resource_of(resource)
        labelled = Resource(of.project, of.model, permit.found.labels)
        return AccessRequest(principal, action, labelled, self._clock.now())


def _ability(
    principal: Principal,
    explanation: Explanation,
    last_seen: datetime | None,
    last_use: datetime | None,
) -> Ability:
    wanted = [
        finding
        for finding in explanation.findings
        if finding.policy.effect is Effect.PERMIT and finding.verdict is explanation.verdict
    ] or [finding for finding in explanation.findings if finding.verdict is Verdict.YES]
    conditions = [
        f"!({finding.missing})" if finding.policy.effect is Effect.FORBID else finding.missing
        for finding in explanation.findings
        if finding.verdict is Verdict.DEPENDS
    ]
    depends = explanation.verdict is Verdict.DEPENDS
    return Ability(
        principal=principal.id,
        verdict=explanation.verdict,
        policies=tuple(finding.policy.id for finding in wanted),
        missing="; ".join(conditions) if depends else "",
        last_seen=last_seen,
        last_use=last_use,
    )


def _changes(
    recorded: Sequence[RecordedDecision], pairs: Iterable[tuple[Decision, Decision]]
) -> list[Change]:
    """One for each distinct request that comes out otherwise; the newest first."""
    found: dict[object, Change] = {}
    for record, (now, then) in zip(recorded, pairs, strict=False):
        leases = record.request.action is Action.LEASE_DATA_KEY
        terms = leases and now.permitted and now.lease_bounds != then.lease_bounds
        if now.permitted is then.permitted and not terms:
            continue
        request = record.request
        key = (
            request.principal,
            request.action,
            request.resource.project,
            request.resource.model,
            tuple(sorted(request.resource.labels.items())),
            request.circumstances.source,
            request.circumstances.suite,
            request.circumstances.client_version,
            tuple(sorted(request.circumstances.attributes.items())),
            now.permitted,
            then.permitted,
        )
        before = found.get(key)
        if before is None:
            found[key] = Change(record, record.repeats, now, then)
        else:
            found[key] = Change(
                before.newest, before.decisions + record.repeats, before.now, before.then
            )
    return list(found.values())


def _resource_of(name: Target) -> Resource:
    return Resource(name.project, name.model if isinstance(name, ModelName) else None)


def _name_of(resource: Resource) -> ServiceName | ProjectName | ModelName:
    if not resource.project:
        return ServiceName()
    if resource.model is None:
        return ProjectName(resource.project)
    return ModelName(resource.project, resource.model)
