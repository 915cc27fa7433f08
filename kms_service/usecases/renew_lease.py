"""Renewing a lease: only by its holder, and only while a new one would be given.

Policy is asked what it was asked for the lease: who calls, from where and by which client is of
this call, the key-transport suite and the claims of the client are of the lease, whose key has
travelled already. So a permit that demands them holds on renewal as it held at first.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from kms_service.domain.catalogue import Version
from kms_service.domain.decisions import Action
from kms_service.domain.errors import LeaseNotFoundOrDenied, LeaseRevoked, ServiceError
from kms_service.domain.identity import Caller
from kms_service.domain.leases import Lease
from kms_service.domain.names import LeaseName, ModelName
from kms_service.domain.ports import Clock, Database, Transaction
from kms_service.usecases.answers import LeaseView
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.catalogue_lookup import look_up
from kms_service.usecases.lease_data_key import check_ttl, whole_milliseconds
from kms_service.usecases.standing import require_not_frozen

NO_SUCH_MODEL = "none"
"""Policy is asked about this model of the project where a lease is not there, so that a guessed
lease id costs the same as a foreign one. Whatever it answers, the lease is not found."""

_NONE: Mapping[str, str] = {}


class RenewLease:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def __call__(self, caller: Caller, name: LeaseName, ttl: timedelta | None) -> LeaseView:
        """The lease, extended from now; never past its absolute end, never shortened.

        Raises:
            InvalidField: `ttl`.
            LeaseNotFoundOrDenied: missing, or another principal's or instance's.
            LeaseExpired, LeaseMaxTtl.
            LeaseRevoked: it was; or a new one would not be given (policy no longer permits, the
                version cannot be opened any more), and so it is now.
        """
        asked = check_ttl(ttl)
        with self._database.read() as tx:
            lease = tx.leases.get(name)
        mine = lease if lease is not None and _held_by(lease, caller) else None
        with self._gate.admit(
            caller,
            Action.LEASE_DATA_KEY,
            name,
            event="RenewLease",
            on=lease.version.parent if lease else ModelName(name.project, NO_SUCH_MODEL),
            refusal=LeaseNotFoundOrDenied,
            # The holder knows of the lease: a withdrawn grant is told as a revoked lease below.
            own=mine is not None,
            # Of another's lease nothing is told to policy: a guess costs what a miss costs.
            suite=mine.suite if mine else 0,
            attributes=mine.attributes if mine else _NONE,
        ) as permit:
            lease = permit.require(lease, mine=mine is not None)
            permit.note(version=lease.version, version_uid=lease.version_uid)
            renewed = self._renew(permit, lease.name, asked)
            return LeaseView(renewed, renewed.state(self._clock.now()))

    def _renew(self, permit: Permit, name: LeaseName, asked: timedelta | None) -> Lease:
        def renew(tx: Transaction) -> Lease | None:
            lease = permit.require(tx.leases.get(name))
            permit.require_unblocked(tx)
            found = look_up(tx, lease.version)
            now = self._clock.now()
            # What became of the lease itself is told first: an expired one stays expired.
            renewed = lease.renew(whole_milliseconds(permit.decision.lease_bounds), asked, now)
            why_not = _why_not_given(tx, permit, lease, found.version)
            if why_not is None:
                tx.leases.renew(renewed)
                permit.record(
                    renewals=renewed.renewals, expire_time=renewed.expire_time.isoformat()
                )
                return renewed
            tx.leases.revoke(name, now)
            permit.note(lease_revoked="yes", cause=why_not)
            return None

        renewed = self._database.transact(renew)
        if renewed is None:
            raise LeaseRevoked
        return renewed


def _held_by(lease: Lease, caller: Caller) -> bool:
    holder = (caller.principal.id, caller.principal.instance)
    return (lease.principal, lease.instance) == holder


def _why_not_given(
    tx: Transaction, permit: Permit, lease: Lease, version: Version | None
) -> str | None:
    """Why no new lease of this version would be given now; None if one would."""
    if not permit.decision.permitted:
        return "denied LeaseDataKey"
    if version is None or version.uid != lease.version_uid:
        return "version gone"
    try:
        require_not_frozen(tx, lease.version.parent.parent)
        version.require_openable()
    except ServiceError as error:
        return error.reason
    return None
