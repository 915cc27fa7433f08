"""Deciding that a version is destroyed: one officer schedules, another confirms, both may undo."""

from __future__ import annotations

from datetime import timedelta

from kms_service.domain.decisions import Action
from kms_service.domain.destruction import Destruction, Moment, check_destroy_wait
from kms_service.domain.identity import Caller
from kms_service.domain.names import VersionName
from kms_service.domain.ports import Clock, Database, LeaseFilter, Transaction
from kms_service.usecases.answers import VersionView
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.catalogue_lookup import look_up
from kms_service.usecases.version_records import state_of


class DestroyVersion:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def schedule(
        self, caller: Caller, name: VersionName, wait: timedelta | None, delete_artifact: bool
    ) -> VersionView:
        """ENABLED or DISABLED → DESTROY_SCHEDULED: cannot be opened from now on, and its leases
        end. Nothing is destroyed before another officer confirms it and `wait` (30 days if None)
        is over.

        Raises:
            InvalidField: `wait` is under 24 hours or over 366 days.
            ModelNotFoundOrDenied: missing, or not permitted.
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed.
        """
        wait = check_destroy_wait(wait)
        now = self._now()
        with self._gate.admit(caller, Action.DESTROY_VERSION, name) as permit:

            def schedule(tx: Transaction) -> VersionView:
                found = look_up(tx, name)
                version = permit.require(found.version)
                due = now + wait
                scheduled = version.schedule_destroy(
                    Destruction(caller.principal.id, due, delete_artifact)
                )
                tx.versions.update(scheduled)
                of_version = LeaseFilter(name.project, model=name.model, number=name.number)
                revoked = tx.leases.revoke(of_version, now.time)
                permit.record(
                    **state_of(scheduled),
                    was=version.state.value,
                    due_time=due.time.isoformat(),
                    delete_artifact=delete_artifact,
                    leases_revoked=revoked,
                )
                return VersionView(scheduled, found.aliases)

            return self._database.transact(schedule)

    def confirm(self, caller: Caller, name: VersionName) -> VersionView:
        """Another officer's word: now it is destroyed when it is due. Once more by the same
        officer changes nothing.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
            SecondOfficerRequired, DestroyConfirmed, VersionNotScheduled, VersionDestroyed.
        """
        with self._gate.admit(caller, Action.CONFIRM_DESTROY_VERSION, name) as permit:

            def confirm(tx: Transaction) -> VersionView:
                found = look_up(tx, name)
                version = permit.require(found.version)
                confirmed = version.confirm_destroy(caller.principal.id)
                if confirmed != version:
                    tx.versions.update(confirmed)
                destruction = confirmed.require_scheduled()
                permit.record(
                    **state_of(confirmed),
                    scheduled_by=destruction.scheduled_by,
                    due_time=destruction.due.time.isoformat(),
                )
                return VersionView(confirmed, found.aliases)

            return self._database.transact(confirm)

    def restore(self, caller: Caller, name: VersionName) -> VersionView:
        """DESTROY_SCHEDULED → DISABLED, until it is due.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
            VersionNotScheduled, VersionDestroyed.
        """
        now = self._now()
        with self._gate.admit(
            caller, Action.DESTROY_VERSION, name, event="RestoreVersion"
        ) as permit:

            def restore(tx: Transaction) -> VersionView:
                found = look_up(tx, name)
                version = permit.require(found.version)
                restored = version.restore(now)
                tx.versions.update(restored)
                permit.record(**state_of(restored), was=version.state.value)
                return VersionView(restored, found.aliases)

            return self._database.transact(restore)

    def _now(self) -> Moment:
        return Moment(self._clock.now(), self._database.served_time())
