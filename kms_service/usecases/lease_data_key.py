"""Leasing a data key: the one way by which a key reaches a reader.

    decide, look up, check the client's key, commit the lease → record → release

What stands before the first arrow is one transaction: a key that leaves has a permit, a version
that could be opened, no block and no freeze, all as of the commit of its lease; and then a durable
record. If the data key is not in memory, that transaction commits nothing, Vault is asked, and all
of it is asked again. The reverse is not promised: there may be a record, or a lease, without
delivery.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Self

from modelkms_api.key_transport import PURPOSE_LEASE, pin_bytes

from kms_service.domain.attributes import check_attributes
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import ArtifactPin, Project, Version, WrappedDataKey
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
from kms_service.domain.names import LeaseName, Reference
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
    Wake,
)
from kms_service.domain.secret import SecretBytes
from kms_service.usecases.answers import LeasedDataKey, LeaseView, VersionView
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.resolution import locate, resolve
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

        with (
            self._gate.call(
                caller, Action.LEASE_DATA_KEY.value, reference, suite=client_key.suite
            ) as permit,
            _Held() as held,
        ):
            wish = _Wish(caller, reference, client_key, claims, asked)
            lease = self._issue(permit, wish, held)
            if lease is None:
                liveness.check()
                held.data_key = self._unwrap(held)
                lease = self._issue(permit, wish, held)
            assert lease is not None  # for its key is held
            duration = lease.expire_time - lease.issue_time
            try:
                permit.require_recorded()
                location = locate(self._store, self._clock, held.version)
                encrypted = self._encrypt(lease, duration, held, client_key)
                liveness.check()
            except BaseException:
                # The key did not leave, whatever the reason; the gate records that it did not.
                permit.note(delivered="no")
                self._withdraw(permit, lease)
                raise

            return LeasedDataKey(
                lease=LeaseView(lease, lease.state(lease.issue_time)),
                version=VersionView(held.version, permit.found.aliases),
                artifact=location,
                data_key=encrypted,
                lease_duration=duration,
                max_offline=permit.decision.lease_bounds.max_offline,
            )

    def _issue(self, permit: Permit, wish: _Wish, held: _Held) -> Lease | None:
        """The lease, committed together with all that it was given on the strength of, and its
        record, which `permit.require_recorded` must be asked for. None if the data key must first
        be had from Vault: `held` says of which version."""

        def issue(tx: Transaction) -> Lease | None:
            # Asked within the transaction, so that no withdrawal falls between answer and commit;
            # and again after Vault, which took its time (F19).
            about = held.version.name if held.known else wish.reference
            permit.ask(tx, Action.LEASE_DATA_KEY, about, attributes=wish.attributes)
            project, version = resolve(permit, about)
            require_not_frozen(tx, version.name.parent.parent)
            pin = version.require_openable()
            if not held.known:
                self._transport.check(wish.client_key)
                held.know(project, version, pin)
                held.data_key = self._master_keys.in_memory(*held.wrapped)
            elif (version.uid, pin) != (held.version.uid, held.pin):
                raise ConcurrentUpdate
            if held.data_key is None:
                return None

            lease = self._lease(permit, wish, version)
            _require_room(tx, permit.decision.lease_bounds, lease)
            tx.leases.insert(lease)
            return lease

        def record(lease: Lease | None, wake: Wake) -> None:
            if lease is None:
                wake()
                return
            permit.note(lease=lease.name, expire_time=lease.expire_time.isoformat())
            permit.record_soon(wake)

        return self._database.transact(issue, record)

    def _lease(self, permit: Permit, wish: _Wish, version: Version) -> Lease:
        bounds, now = whole_milliseconds(permit.decision.lease_bounds), self._clock.now()
        return Lease(
            name=LeaseName(version.name.project, secrets.token_hex(16)),
            version=version.name,
            version_uid=version.uid,
            principal=wish.caller.principal.id,
            instance=wish.caller.principal.instance,
            issue_time=now,
            expire_time=now + bounds.first(wish.ttl),
            absolute_end_time=now + bounds.max_ttl,
            suite=wish.client_key.suite,
            attributes=wish.attributes,
        )

    def _unwrap(self, held: _Held) -> SecretBytes:
        return self._master_keys.unwrap(*held.wrapped)

    def _encrypt(
        self, lease: Lease, duration: timedelta, held: _Held, client_key: ClientKey
    ) -> EncryptedDataKey:
        """The data key, for this client key only, bound to the lease."""
        assert held.data_key is not None
        pin = held.pin
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
        return self._transport.encrypt(held.data_key, lease.principal, client_key, binding)

    def _withdraw(self, permit: Permit, lease: Lease) -> None:
        try:
            self._database.transact(lambda tx: tx.leases.revoke(lease.name, self._clock.now()))
        except ServiceError as error:
            # A lease that stays live without a key under it runs out by itself.
            permit.note(lease_revoked=error.reason)
        else:
            permit.note(lease_revoked="yes")


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for."""

    caller: Caller
    reference: Reference
    client_key: ClientKey
    attributes: Mapping[str, str]
    ttl: timedelta | None


class _Held:
    """The version that the reference means, once it was looked up, and its data key, once it is
    here: the copy of this call, wiped at its end."""

    __slots__ = ("_project", "data_key", "known", "pin", "version")

    _project: Project
    version: Version
    pin: ArtifactPin

    def __init__(self) -> None:
        self.known = False
        self.data_key: SecretBytes | None = None

    def know(self, project: Project, version: Version, pin: ArtifactPin) -> None:
        self._project, self.version, self.pin, self.known = project, version, pin, True

    @property
    def wrapped(self) -> tuple[str, WrappedDataKey, bytes]:
        """Master key, wrapped data key and context: what unwraps it."""
        version = self.version
        context = data_key_context(version.name.parent, version.uid)
        return self._project.master_key, version.wrapped_key, context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.data_key is not None:
            self.data_key.wipe()


def _require_room(tx: Transaction, bounds: LeaseBounds, lease: Lease) -> None:
    """
    Raises:
        LeaseUsedUp, LeaseLimit: the principal has what policy allows.
    """
    version = lease.version
    of_model = LeaseFilter(version.project, principal=lease.principal, model=version.model)
    if bounds.one_time and tx.leases.count(replace(of_model, number=version.number)):
        raise LeaseUsedUp
    live = replace(of_model, live_at=lease.issue_time)
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
