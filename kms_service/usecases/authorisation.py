"""The gate every call goes through: asks policy, refuses, and leaves a record whatever happens.

A call has the form

    with self._gate.admit(caller, Action.…, name) as permit:
        thing = permit.require(permit.found.thing)      # missing is told as forbidden is
        …
        permit.record(…)                                # durable, before the answer leaves

Whoever is refused, and whatever fails inside, is recorded on the way out. Missing and forbidden
look alike to the caller (same error, same message, a decision id each) and take the same steps:
one look for a block and one for the model's labels, one decision, one record. All else is looked
up after a permit.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar
from urllib.parse import unquote

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.decisions import (
    AccessRequest,
    Action,
    Circumstances,
    Decision,
    Resource,
)
from kms_service.domain.errors import (
    AuditUnavailable,
    DecisionNotFoundOrDenied,
    LeaseNotFoundOrDenied,
    ModelNotFoundOrDenied,
    ServiceError,
)
from kms_service.domain.identity import Caller
from kms_service.domain.names import (
    AliasName,
    LeaseName,
    ModelName,
    ProjectName,
    ServiceName,
    VersionName,
)
from kms_service.domain.ports import AuditLog, Clock, Database, PolicyEngine, Transaction, Wake
from kms_service.usecases.catalogue_lookup import Found, Name, labels_of, look_up

T = TypeVar("T")

Refusal = type[ModelNotFoundOrDenied] | type[LeaseNotFoundOrDenied] | type[DecisionNotFoundOrDenied]

_NO_LABELS: Mapping[str, str] = {}
_MICROSECOND = timedelta(microseconds=1)


class Gate:
    """Decides, and records."""

    def __init__(
        self, *, database: Database, policy: PolicyEngine, audit: AuditLog, clock: Clock
    ) -> None:
        self._database = database
        self._policy = policy
        self._audit = audit
        self._clock = clock

    @contextmanager
    def admit(
        self,
        caller: Caller,
        action: Action,
        name: Name,
        *,
        event: str | None = None,
        on: ServiceName | ProjectName | ModelName | None = None,
        labels: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] = _NO_LABELS,
        refusal: Refusal = ModelNotFoundOrDenied,
        own: bool = False,
        suite: int = 0,
    ) -> Iterator[Permit]:
        """The permit for one call; records the refusal or failure that ends it.

        Args:
            name: what the caller asked for; recorded as the resource.
            event: name of the event, if it is not the action's (uploads are CREATE_VERSION).
            on: what policy is asked about, if it does not follow from `name`.
            labels: of a model that is to be; None: the stored model's.
            attributes: claims of the client.
            refusal: the error of a denial.
            own: the caller owns it, so that a denial does not bar: the decision is recorded only.
                A block bars all the same.
            suite: of key transport, where a data key is asked for.

        Raises:
            ModelNotFoundOrDenied or as `refusal` says: not permitted, or blocked.
            PolicyUnavailable, AuditUnavailable: nothing can be decided or recorded.
        """
        event = event or action.value
        with self.call(caller, event, name, refusal=refusal, suite=suite) as permit:
            self._database.look(
                lambda tx: permit.ask(
                    tx, action, on or name, labels=labels, attributes=attributes, own=own
                )
            )
            yield permit

    @contextmanager
    def call(
        self,
        caller: Caller,
        event: str,
        name: Name,
        *,
        refusal: Refusal = ModelNotFoundOrDenied,
        suite: int = 0,
    ) -> Iterator[Permit]:
        """As `admit`, but nothing is asked yet: `Permit.ask` is for the use case to call, in the
        transaction on whose strength it acts.

        Raises: as `admit`.
        """
        permit = Permit(self._policy, self._audit, self._clock, caller, event, name, refusal, suite)
        try:
            yield permit
        except ServiceError as error:
            permit.record_end(error, error.reason)
            raise
        except BaseException as error:
            # Not an error of ours: a bug, or the caller's stream breaking under our hands.
            permit.record_end(error, "INTERNAL")
            raise

    def record_listing(self, caller: Caller, event: str, resource: str, items: int) -> None:
        """Record a list that policy filtered item by item, so that no one decision stands for it.

        Raises:
            AuditUnavailable.
        """
        self._audit.append(
            AuditRecord(
                time=self._clock.now(),
                event=event,
                outcome=Outcome.OK,
                request_id=caller.request_id,
                trace_id=caller.trace_id,
                principal=caller.principal.id,
                instance=caller.principal.instance,
                peer=caller.peer,
                resource=resource,
                details={"items": str(items)},
            )
        )


class Permit:
    """What one call was allowed, and what is to be said of it in the audit log."""

    def __init__(
        self,
        policy: PolicyEngine,
        audit: AuditLog,
        clock: Clock,
        caller: Caller,
        event: str,
        name: Name,
        refusal: Refusal,
        suite: int = 0,
    ) -> None:
        self._policy = policy
        self._audit = audit
        self._clock = clock
        self._caller = caller
        self._event = event
        self._name = name
        self._refusal = refusal
        self._suite = suite
        self.found = Found()
        """What is behind the name, looked up after the permit in the transaction that it saw."""
        self._decision: Decision | None = None
        self._cause = ""
        self._details: dict[str, str] = {}
        self._recorded = False
        self._began = clock.now()

    @property
    def decision(self) -> Decision:
        """The newest decision of this call."""
        if self._decision is None:
            raise RuntimeError("a permit without a decision")
        return self._decision

    def ask(
        self,
        tx: Transaction,
        action: Action,
        about: Name,
        *,
        labels: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] = _NO_LABELS,
        own: bool = False,
    ) -> None:
        """Ask block and policy, then look up what is behind the name: as of this transaction.

        Args: see `Gate.admit`.

        Raises: as `demand`.
        """
        # Looked up before policy answers: the blocked take no step that others do not.
        blocked = is_blocked(tx, self._caller, self._clock)
        known = labels_of(tx, about) if labels is None else labels
        self.demand(action, about, labels=known, attributes=attributes, own=own)
        self.refuse_if(blocked)
        self.found = look_up(tx, about)

    def demand(
        self,
        action: Action,
        name: Name,
        *,
        labels: Mapping[str, str] = _NO_LABELS,
        attributes: Mapping[str, str] = _NO_LABELS,
        own: bool = False,
    ) -> Decision:
        """Ask policy (again): at the beginning, for a further act, and before committing.

        Raises:
            as the gate refuses.
            PolicyUnavailable.
        """
        self._decision = self._policy.decide(
            AccessRequest(
                principal=self._caller.principal,
                action=action,
                resource=_resource(name, labels),
                time=self._clock.now(),
                circumstances=Circumstances(
                    source=source_of(self._caller.peer),
                    suite=self._suite,
                    client_version=self._caller.client_version,
                    attributes=attributes,
                ),
            )
        )
        if not self._decision.permitted and not own:
            self._cause = f"denied {action.value}"
            raise self._refusal(self._decision.id)
        return self._decision

    def require_unblocked(self, tx: Transaction) -> None:
        """Ask whether the caller is blocked, whatever policy says. Again in the transaction on
        whose strength a key is issued: a block must hold from its commit on (F67).

        Raises:
            as the gate refuses: a blocked principal sees what a stranger sees.
        """
        self.refuse_if(is_blocked(tx, self._caller, self._clock))

    def refuse_if(self, blocked: bool) -> None:
        """
        Raises:
            as `require_unblocked`.
        """
        if blocked:
            self._cause = "blocked"
            raise self._refusal(self.decision.id)

    def require(self, found: T | None, *, mine: bool = True) -> T:
        """`found`, if it is there and (where only its owner may act) the caller's.

        Raises:
            as the gate refuses: told alike.
        """
        if found is None or not mine:
            self._cause = "missing" if found is None else "foreign"
            raise self._refusal(self.decision.id)
        return found

    def note(self, **details: object) -> None:
        """Remember for the record of this call, however it ends. Never a secret."""
        self._details |= {key: str(value) for key, value in details.items()}

    def record(self, **details: object) -> None:
        """Record that the act is done, with what was noted. Durable when it returns.

        Raises:
            AuditUnavailable: it is not; nothing may be answered.
        """
        self.note(**details)
        self._append(Outcome.OK, "")

    def record_soon(self, wake: Wake) -> None:
        """As `record`, without waiting: `wake` is called once the record's fate is known. Then
        `require_recorded` must be asked."""

        def known(durable: bool) -> None:
            self._recorded = durable
            wake()

        self._audit.append_soon(self._record(Outcome.OK, ""), known)

    def require_recorded(self) -> None:
        """
        Raises:
            AuditUnavailable: as `record`.
        """
        if not self._recorded:
            raise AuditUnavailable

    def record_end(self, error: BaseException, reason: str) -> None:
        """Record the refusal or failure that ends the call; the gate's own.

        Raises:
            AuditUnavailable: a refusal that leaves no record is not told either.
        """
        if isinstance(error, AuditUnavailable):
            # Its own failure: tried once, for when only this record could not be written.
            self.note(answered="no")
            self._try_append(Outcome.FAILED, reason)
        elif isinstance(error, self._refusal):
            self.note(cause=self._cause)
            self._append(Outcome.DENIED, reason)
        else:
            self._append(Outcome.FAILED, reason)

    def _try_append(self, outcome: Outcome, reason: str) -> None:
        try:
            self._append(outcome, reason)
        except AuditUnavailable:
            return

    def _append(self, outcome: Outcome, reason: str) -> None:
        self._audit.append(self._record(outcome, reason))

    def _record(self, outcome: Outcome, reason: str) -> AuditRecord:
        decision, now = self._decision, self._clock.now()
        return AuditRecord(
            time=now,
            event=self._event,
            outcome=outcome,
            request_id=self._caller.request_id,
            trace_id=self._caller.trace_id,
            latency_us=(now - self._began) // _MICROSECOND,
            principal=self._caller.principal.id,
            instance=self._caller.principal.instance,
            peer=self._caller.peer,
            resource=str(self._name),
            decision_id=decision.id if decision else "",
            policies=decision.policies if decision else (),
            policy_epoch=decision.epoch if decision else "",
            reason=reason,
            details=dict(self._details),
        )


@lru_cache(maxsize=1024)
def source_of(peer: str) -> str:
    """The IP address in what gRPC calls a peer (`ipv4:10.0.0.1:5`, `ipv6:%5B::1%5D:5`), in one
    form for each; empty if there is none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    # A policy that speaks of 10.0.0.0/8 means such a caller on a dual-stack socket, too.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def is_blocked(tx: Transaction, caller: Caller, clock: Clock) -> bool:
    block = tx.blocks.get(caller.principal.id)
    return block is not None and block.holds(clock.now())


def _resource(name: Name, labels: Mapping[str, str]) -> Resource:
    match name:
        case ServiceName():
            return Resource("")
        case ProjectName(project) | LeaseName(project):
            return Resource(project)
        case ModelName() | VersionName() | AliasName():
            return Resource(name.project, name.model, labels)
