"""Pointing an alias to a version."""

from __future__ import annotations

from kms_service.domain.catalogue import Alias
from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField
from kms_service.domain.identity import Caller
from kms_service.domain.names import AliasName, VersionName
from kms_service.domain.ports import Clock, Database, Transaction
from kms_service.usecases.authorisation import Gate, Permit


class SetAlias:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def __call__(self, caller: Caller, name: AliasName, version_name: VersionName) -> Alias:
        """The alias, pointing to `version_name`; made if it was not there.

        Raises:
            InvalidField: the version is another model's.
            ModelNotFoundOrDenied: missing, or not permitted.
            VersionNotFinalized, VersionDisabled, VersionDestroyScheduled, VersionDestroyed: an
                alias only points to what can be opened.
        """
        if version_name.parent != name.parent:
            raise InvalidField("version", "must be a version of the alias's model")
        with self._gate.admit(caller, Action.SET_ALIAS, name) as permit:
            return self._database.transact(lambda tx: self._set(tx, permit, name, version_name))

    def _set(
        self, tx: Transaction, permit: Permit, name: AliasName, version_name: VersionName
    ) -> Alias:
        version = permit.require(tx.versions.get(version_name))
        version.require_openable()
        before = tx.aliases.get(name)
        alias = Alias(name, version_name.number, self._clock.now())
        if before is None or before.number != alias.number:
            tx.aliases.put(alias)
        elif before is not None:
            alias = before
        permit.record(
            version=version_name,
            version_uid=version.uid,
            was=before.version if before else "",
        )
        return alias
