"""Enabling and disabling versions."""

from __future__ import annotations

from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.names import VersionName
from kms_service.domain.ports import Clock, Database, LeaseFilter, Transaction
from kms_service.usecases.answers import VersionView
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.catalogue_lookup import look_up
from kms_service.usecases.version_records import state_of


class ChangeVersionState:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def enable(self, caller: Caller, name: VersionName) -> VersionView:
        """DISABLED → ENABLED; ENABLED stays. Leases that were revoked stay revoked.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed.
        """
        with self._gate.admit(caller, Action.ENABLE_VERSION, name) as permit:

            def enable(tx: Transaction) -> VersionView:
                found = look_up(tx, name)
                version = permit.require(found.version)
                enabled = version.enable()
                if enabled != version:
                    tx.versions.update(enabled)
                permit.record(**state_of(enabled), was=version.state.value)
                return VersionView(enabled, found.aliases)

            return self._database.transact(enable)

    def disable(self, caller: Caller, name: VersionName) -> VersionView:
        """ENABLED → DISABLED; DISABLED stays. Revokes the version's leases in the same
        transaction, so that none is live under a disabled version.

        Raises: as `enable`.
        """
        with self._gate.admit(caller, Action.DISABLE_VERSION, name) as permit:

            def disable(tx: Transaction) -> VersionView:
                found = look_up(tx, name)
                version = permit.require(found.version)
                disabled = version.disable()
                if disabled != version:
                    tx.versions.update(disabled)
                now = self._clock.now()
                of_version = LeaseFilter(name.project, model=name.model, number=name.number)
                revoked = tx.leases.revoke(of_version, now)
                permit.record(**state_of(disabled), was=version.state.value, leases_revoked=revoked)
                return VersionView(disabled, found.aliases)

            return self._database.transact(disable)
