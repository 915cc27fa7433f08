"""Finalizing a version: the service looks at the stored object itself, pins it, and only then
can the version be opened."""

from __future__ import annotations

from datetime import datetime

from modelkms_api.artifact import (
    MAX_CLEAR_PREFIX_BYTES,
    ArtifactFormatError,
    PinDigest,
    parse_clear_prefix,
)

from kms_service.domain.catalogue import Alias, ArtifactPin, Version, VersionState
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    ArtifactCorrupt,
    ArtifactMismatch,
    InvalidField,
    UploadIncomplete,
    VersionNotPending,
)
from kms_service.domain.identity import Caller
from kms_service.domain.names import STABLE, AliasName, VersionName
from kms_service.domain.ports import (
    ArtifactStore,
    Clock,
    Database,
    LeaseFilter,
    Liveness,
    Transaction,
)
from kms_service.usecases.answers import FinalizedVersion
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.catalogue_lookup import aliases_of, look_up, view
from kms_service.usecases.version_records import state_of

_PIN_FIELD_BYTES = 32


class FinalizeVersion:
    def __init__(
        self, *, gate: Gate, database: Database, store: ArtifactStore, clock: Clock
    ) -> None:
        self._gate = gate
        self._database = database
        self._store = store
        self._clock = clock

    def __call__(
        self,
        caller: Caller,
        name: VersionName,
        pin: ArtifactPin,
        promote: bool,
        *,
        liveness: Liveness,
        rekey_of: VersionName | None = None,
    ) -> FinalizedVersion:
        """The version, ENABLED. `stable` points to it if it is the model's first, or `promote`.
        `rekey_of` is disabled in the same transaction, and its aliases point here.

        Once more with the same pin gives the same answer and moves nothing: a publisher whose
        answer was lost must not undo what was promoted since.

        Raises:
            InvalidField: the pin is malformed, or `rekey_of` is this or another model's version.
            ModelNotFoundOrDenied: missing, not permitted, another publisher's version, or
                `promote` without being permitted to move `stable`, or `rekey_of` without being
                permitted to rekey.
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed: `rekey_of`.
            VersionNotPending: finalized with another pin. VersionDestroyed: expired.
            UploadIncomplete: fewer bytes are stored than the pin says; the upload can go on.
            ArtifactMismatch: the object is not the one of this version and pin.
            ArtifactCorrupt: the object is no artifact.
            StorageUnavailable, DeadlineExceeded, and outages.
        """
        _check_pin(pin)
        if rekey_of is not None and (rekey_of.parent != name.parent or rekey_of == name):
            raise InvalidField("rekey_of", "must be another version of the same model")
        with self._gate.admit(
            caller, Action.CREATE_VERSION, name, event="FinalizeVersion"
        ) as permit:
            version = permit.require(permit.found.version)
            permit.require(version, mine=version.publisher == caller.principal.id)
            permit.note(version_uid=version.uid, promote=promote)
            if promote:
                permit.demand(Action.SET_ALIAS, name, labels=permit.found.labels)
            if rekey_of is not None:
                permit.note(rekey_of=rekey_of)
                permit.demand(Action.REKEY_VERSION, name, labels=permit.found.labels)

            if not _finalized_with(version, pin):
                version.require_pending()
                self._check_object(version, pin, liveness)
                # Nothing can be appended to a published object: if its length is the pin's now,
                # it is what was checked.
                self._store.publish(version.artifact_id)
                if self._store.stored_bytes(version.artifact_id) != pin.length_bytes:
                    raise ArtifactMismatch

            return self._database.transact(
                lambda tx: self._commit(tx, permit, version, pin, promote, rekey_of)
            )

    # --- the object ----------------------------------------------------------------------------

    def _check_object(self, version: Version, pin: ArtifactPin, liveness: Liveness) -> None:
        """Read the stored object whole: its clear header must name this version, its bytes must
        give the pin."""
        stored_bytes = self._store.stored_bytes(version.artifact_id) or 0
        if stored_bytes < pin.length_bytes:
            raise UploadIncomplete(stored_bytes=str(stored_bytes))
        if stored_bytes > pin.length_bytes:
            raise ArtifactMismatch

        prefix = b"".join(
            self._store.read(version.artifact_id, 0, min(MAX_CLEAR_PREFIX_BYTES, pin.length_bytes))
        )
        try:
            clear = parse_clear_prefix(prefix)
        except ArtifactFormatError as error:
            raise ArtifactCorrupt from error
        header = clear.header
        if (header.version, header.version_uid, header.artifact_id) != (
            str(version.name),
            version.uid,
            version.artifact_id,
        ):
            raise ArtifactMismatch
        if clear.floe_header_tag(prefix) != pin.floe_header_tag:
            raise ArtifactMismatch

        digest = PinDigest()
        for chunk in self._store.read(version.artifact_id, 0, pin.length_bytes):
            digest.update(chunk)
            liveness.check()
        if digest.digest() != pin.digest:
            raise ArtifactMismatch

    # --- the catalogue -------------------------------------------------------------------------

    def _commit(
        self,
        tx: Transaction,
        permit: Permit,
        checked: Version,
        pin: ArtifactPin,
        promote: bool,
        rekey_of: VersionName | None,
    ) -> FinalizedVersion:
        name, now = checked.name, self._clock.now()
        found = look_up(tx, name)
        version = permit.require(found.version)
        # Reading a large object takes long: what was permitted then must be permitted now.
        if promote:
            permit.demand(Action.SET_ALIAS, name, labels=found.labels)
        if rekey_of is not None:
            permit.demand(Action.REKEY_VERSION, name, labels=found.labels)
        permit.demand(Action.CREATE_VERSION, name, labels=found.labels)

        stable = AliasName(name.project, name.model, STABLE)
        if not _finalized_with(version, pin):
            version = version.finalize(pin, now)
            tx.versions.update(version)
            if promote or tx.aliases.get(stable) is None:
                tx.aliases.put(Alias(stable, name.number, now))
            if rekey_of is not None:
                _succeed(tx, permit, rekey_of, name, now)
        else:
            permit.note(repeated="yes")
        answer = FinalizedVersion(view(tx, version), _stable_version(tx, stable, version, now))
        permit.record(
            **state_of(version),
            length_bytes=pin.length_bytes,
            digest=pin.digest.hex(),
            stable_version=answer.stable_version,
        )
        return answer


def _succeed(
    tx: Transaction, permit: Permit, old_name: VersionName, name: VersionName, now: datetime
) -> None:
    """`old_name` is disabled and its leases end; its aliases point to `name`."""
    old = permit.require(tx.versions.get(old_name))
    disabled = old.disable()
    if disabled != old:
        tx.versions.update(disabled)
    moved = aliases_of(tx, old_name)
    for alias in moved:
        tx.aliases.put(Alias(AliasName(name.project, name.model, alias), name.number, now))
    of_old = LeaseFilter(old_name.project, model=old_name.model, number=old_name.number)
    permit.note(
        rekeyed_uid=old.uid,
        rekeyed_state=disabled.state.value,
        rekeyed_revision=disabled.revision,
        aliases_moved=",".join(moved),
        leases_revoked=tx.leases.revoke(of_old, now),
    )


def _check_pin(pin: ArtifactPin) -> None:
    if pin.length_bytes <= 0:
        raise InvalidField("pin.length_bytes", "must be positive")
    if len(pin.floe_header_tag) != _PIN_FIELD_BYTES:
        raise InvalidField("pin.floe_header_tag", f"must be {_PIN_FIELD_BYTES} bytes")
    if len(pin.digest) != _PIN_FIELD_BYTES:
        raise InvalidField("pin.digest", f"must be {_PIN_FIELD_BYTES} bytes")


def _finalized_with(version: Version, pin: ArtifactPin) -> bool:
    """Whether the version was finalized with this pin.

    Raises:
        VersionNotPending: with another.
    """
    if version.state is VersionState.PENDING or version.pin is None:
        return False
    if version.pin != pin:
        raise VersionNotPending
    return True


def _stable_version(
    tx: Transaction, stable: AliasName, version: Version, now: datetime
) -> VersionName:
    # There is one from the first finalized version on, and aliases are moved, never removed.
    return (tx.aliases.get(stable) or Alias(stable, version.name.number, now)).version
