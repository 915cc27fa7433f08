"""Leasing a data key: the one way by which a key reaches a reader.

    look up → decide → check the client's key → unwrap → commit the lease → record → release

Each step only after the one before. Whatever happens between, a key that leaves has a permit
that was asked again when the lease committed, a lease under which its version was ENABLED, and a
durable record. The reverse is not promised: there may be a record, or a lease, without delivery.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from modelkms_api.key_transport import PURPOSE_LEASE, pin_bytes

from kms_service.domain.attributes import check_attributes
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import ArtifactPin, Version
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    ConcurrentUpdate,
    InvalidField,
    LeaseLimit,
    LeaseUsedUp,
    ServiceError,
)
from kms_service.domain.identity import Caller
from kms_service.domain.leases import Lease, LeaseBounds
from kms_service.domain.names import LeaseName, Reference, VersionName
from kms_service.domain.ports import (
    ArtifactStore,
    ClientKey,
    Clock,
    Database,
    EncryptedDataKey,
    KeyAnswerBinding,
    KeyTransport,
    LeaseFilter,
    Liveness,
    Transaction,
    Unwrapping,
)
from kms_service.domain.secret import SecretBytes
from kms_service.usecases.answers import LeasedDataKey, LeaseView, VersionView
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.resolution import locate, resolve_openable
from kms_service.usecases.standing import require_not_frozen

MILLISECOND = timedelta(milliseconds=1)


class LeaseDataKey:
    def __init__(
        self,
        *,
        gate: Gate,
        database: Database,
        master_keys: Unwrapping,
        transport: KeyTransport,
        store: ArtifactStore,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._database = database
        self._master_keys = master_keys
        self._transport = transport
        self._store = store
        self._clock = clock

    def __call__(
        self,
        caller: Caller,
        reference: Reference,
        client_key: ClientKey,
        *,
        attributes: Mapping[str, str],
        ttl: timedelta | None,
        liveness: Liveness,
    ) -> LeasedDataKey:
        """A lease, the version that the reference means, and its data key for this client key.

        Raises:
            InvalidField: `attributes` or `ttl`.
            ModelNotFoundOrDenied: missing, or not permitted; Vault was not called.
            NoStableVersion, VersionNotFinalized, VersionDisabled, VersionDestroyScheduled,
            VersionDestroyed, ProjectFrozen: the state, told after a permit only.
            LeaseLimit, LeaseUsedUp: as many leases as policy allows.
            RecipientKeyInvalid: `client_key`; Vault was not called.
            KeyRecordCorrupt, WrappingVersionUnusable, MasterKeyMisconfigured, and outages.
            AuditUnavailable: no durable record, so no key; the lease is revoked.
            DeadlineExceeded: nobody waits any more; a lease made already is revoked.
        """
        claims = check_attributes(attributes, "attributes")
        asked = check_ttl(ttl)

        with self._gate.admit(
            caller,
            Action.LEASE_DATA_KEY,
            reference,
            attributes=claims,
            suite=client_key.suite,
        ) as permit:
            project, version, pin = resolve_openable(permit, reference)
            self._transport.check(client_key)
            location = locate(self._store, self._clock, version)

            liveness.check()
            context = data_key_context(version.name.parent, version.uid)
            data_key = self._master_keys.unwrap(project.master_key, version.wrapped_key, context)
            try:
                lease = self._commit(permit, caller, version, claims, client_key.suite, asked)
                duration = lease.expire_time - lease.issue_time
                encrypted = self._release(
                    permit, lease, pin, duration, data_key, client_key, liveness
                )
            finally:
                data_key.wipe()

            return LeasedDataKey(
                lease=LeaseView(lease, lease.state(lease.issue_time)),
                version=VersionView(version, permit.found.aliases),
                artifact=location,
                data_key=encrypted,
                lease_duration=duration,
                max_offline=permit.decision.lease_bounds.max_offline,
            )

    def _commit(
        self,
        permit: Permit,
        caller: Caller,
        resolved: Version,
        claims: Mapping[str, str],
        suite: int,
        asked: timedelta | None,
    ) -> Lease:
        """The lease, committed together with the check that it may still be given."""

        def commit(tx: Transaction) -> Lease:
            model = permit.require(tx.models.get(resolved.name.parent))
            version = permit.require(tx.versions.get(resolved.name))
            # Vault took its time: what was permitted then must be permitted now (F19). Asked
            # within the transaction, so that no withdrawal falls between answer and commit.
            decision = permit.demand(
                Action.LEASE_DATA_KEY, version.name, labels=model.labels, attributes=claims
            )
            permit.require_unblocked(tx)
            require_not_frozen(tx, version.name.parent.parent)
            version.require_openable()
            if (version.uid, version.pin) != (resolved.uid, resolved.pin):
                raise ConcurrentUpdate

            bounds, now = whole_milliseconds(decision.lease_bounds), self._clock.now()
            _require_room(tx, bounds, caller, version.name, now)
            lease = Lease(
                name=LeaseName(version.name.project, secrets.token_hex(16)),
                version=version.name,
                version_uid=version.uid,
                principal=caller.principal.id,
                instance=caller.principal.instance,
                issue_time=now,
                expire_time=now + bounds.first(asked),
                absolute_end_time=now + bounds.max_ttl,
                suite=suite,
                attributes=claims,
            )
            tx.leases.insert(lease)
            return lease

        lease = self._database.transact(commit)
        permit.note(lease=lease.name, expire_time=lease.expire_time.isoformat())
        return lease

    def _release(
        self,
        permit: Permit,
        lease: Lease,
        pin: ArtifactPin,
        duration: timedelta,
        data_key: SecretBytes,
        client_key: ClientKey,
        liveness: Liveness,
    ) -> EncryptedDataKey:
        """The data key, encrypted; recorded durably before. Else the lease is revoked."""
        binding = KeyAnswerBinding(
            purpose=PURPOSE_LEASE,
            lease=str(lease.name),
            version_uid=lease.version_uid,
            pin=pin_bytes(
                length_bytes=pin.length_bytes,
                floe_header_tag=pin.floe_header_tag,
                digest=pin.digest,
            ),
            lease_duration=duration,
        )
        try:
            permit.record()
            encrypted = self._transport.encrypt(data_key, lease.principal, client_key, binding)
            liveness.check()
        except BaseException:
            # The key did not leave, whatever the reason; the gate records that it did not.
            permit.note(delivered="no")
            self._withdraw(permit, lease)
            raise
        return encrypted

    def _withdraw(self, permit: Permit, lease: Lease) -> None:
        try:
            self._database.transact(lambda tx: tx.leases.revoke(lease.name, self._clock.now()))
        except ServiceError as error:
            # A lease that stays live without a key under it runs out by itself.
            permit.note(lease_revoked=error.reason)
        else:
            permit.note(lease_revoked="yes")


def _require_room(
    tx: Transaction, bounds: LeaseBounds, caller: Caller, version: VersionName, now: datetime
) -> None:
    """
    Raises:
        LeaseUsedUp, LeaseLimit: the principal has what policy allows.
    """
    of_model = LeaseFilter(version.project, principal=caller.principal.id, model=version.model)
    if bounds.one_time and tx.leases.count(replace(of_model, number=version.number)):
        raise LeaseUsedUp
    live = replace(of_model, live_at=now)
    if bounds.max_live is not None and tx.leases.count(live) >= bounds.max_live:
        raise LeaseLimit


def check_ttl(ttl: timedelta | None) -> timedelta | None:
    """`ttl` in whole milliseconds.

    Raises:
        InvalidField: under one millisecond.
    """
    if ttl is None:
        return None
    if ttl < MILLISECOND:
        raise InvalidField("ttl", "must be at least a millisecond")
    return ttl // MILLISECOND * MILLISECOND


def whole_milliseconds(bounds: LeaseBounds) -> LeaseBounds:
    """Lease durations are bound into key answers as whole milliseconds, so they are that."""
    return replace(
        bounds,
        ttl=bounds.ttl // MILLISECOND * MILLISECOND,
        max_ttl=bounds.max_ttl // MILLISECOND * MILLISECOND,
    )
