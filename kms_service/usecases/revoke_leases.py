"""Ending leases: one, or all that match."""

from __future__ import annotations

from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField, LeaseNotFoundOrDenied
from kms_service.domain.identity import Caller
from kms_service.domain.names import LeaseName, ModelName, ProjectName, VersionName
from kms_service.domain.ports import Clock, Database, LeaseFilter, Transaction
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.renew_lease import NO_SUCH_MODEL


class RevokeLeases:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def one(self, caller: Caller, name: LeaseName) -> int:
        """End one lease; 1 if it was live, 0 if it had ended before. A holder may always end
        their own.

        Raises:
            LeaseNotFoundOrDenied: missing, or neither the caller's nor permitted.
        """
        with self._database.read() as tx:
            lease = tx.leases.get(name)
        with self._gate.admit(
            caller,
            Action.REVOKE_LEASES,
            name,
            on=lease.version.parent if lease else ModelName(name.project, NO_SUCH_MODEL),
            refusal=LeaseNotFoundOrDenied,
            own=lease is not None and lease.principal == caller.principal.id,
        ) as permit:
            lease = permit.require(lease)
            permit.note(version=lease.version, version_uid=lease.version_uid)
            holder = lease.principal

            def revoke(tx: Transaction) -> int:
                revoked = tx.leases.revoke(name, self._clock.now())
                permit.record(principal=holder, leases_revoked=revoked)
                return revoked

            return self._database.transact(revoke)

    def matching(
        self,
        caller: Caller,
        parent: ProjectName,
        *,
        principal: str | None = None,
        model: ModelName | VersionName | None = None,
        instance: str | None = None,
    ) -> int:
        """End the project's live leases that match all that is given; how many.

        Raises:
            InvalidField: nothing is given, or `model` is another project's.
            ModelNotFoundOrDenied: missing, or not permitted on the model (the project, if none
                is given).
        """
        if principal is None and model is None and instance is None:
            raise InvalidField("lease", "give a lease, or a principal, model or instance")
        which = lease_filter(parent, principal=principal, model=model, instance=instance)
        with self._gate.admit(caller, Action.REVOKE_LEASES, model or parent) as permit:
            require_scope(permit, model)

            def revoke(tx: Transaction) -> int:
                revoked = tx.leases.revoke(which, self._clock.now())
                permit.record(
                    of_principal=principal or "",
                    of_instance=instance or "",
                    leases_revoked=revoked,
                )
                return revoked

            return self._database.transact(revoke)


def lease_filter(
    parent: ProjectName,
    *,
    principal: str | None,
    model: ModelName | VersionName | None,
    instance: str | None = None,
) -> LeaseFilter:
    """
    Raises:
        InvalidField: `model` is another project's.
    """
    if model is not None and model.project != parent.project:
        raise InvalidField("model", "must be of the project")
    return LeaseFilter(
        project=parent.project,
        principal=principal,
        instance=instance,
        model=model.model if model else None,
        number=model.number if isinstance(model, VersionName) else None,
    )


def require_scope(permit: Permit, model: ModelName | VersionName | None) -> None:
    """
    Raises:
        ModelNotFoundOrDenied: the project, model or version that leases are asked of is missing.
    """
    permit.require(permit.found.project)
    if model is not None:
        permit.require(permit.found.model)
    if isinstance(model, VersionName):
        permit.require(permit.found.version)
