"""What the service notices of master keys by itself: new versions, overdue rotations, data keys
left under old versions. It rewraps if it is configured to; rotating is never its right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.catalogue import Project
from kms_service.domain.errors import ServiceError
from kms_service.domain.ports import (
    AuditLog,
    Clock,
    Database,
    MasterKeyState,
    Rewrapper,
    Rewraps,
)
from kms_service.usecases.rewrap_data_keys import OURSELVES, new_rewrap

_PAGE = 1000
_AGAIN_AFTER_FAILURES = timedelta(hours=6)
_LATE = timedelta(hours=1)
"""Vault rotates by itself some time after the period is over."""


@dataclass(frozen=True, slots=True)
class MasterKeysSeen:
    """Of all projects.

    Attributes:
        rotation_overdue: master keys whose newest version is older than it should be.
        keys_under_old_versions: data keys not under the newest version of their master key.
        unreadable: projects whose master key could not be looked at.
        started: rewraps that were started.
    """

    rotation_overdue: int = 0
    keys_under_old_versions: int = 0
    unreadable: int = 0
    started: int = 0


class WatchMasterKeys:
    """Called by a timer; by nobody from outside, so there is no policy to ask.

    Args:
        rewrap: whether to start rewraps.
        keys_per_second: of those.
        max_age: how old the newest version of a master key may get; its own schedule, if it has
            one that is shorter, counts instead.
    """

    def __init__(
        self,
        *,
        database: Database,
        rewraps: Rewraps,
        rewrapper: Rewrapper,
        audit: AuditLog,
        clock: Clock,
        rewrap: bool,
        keys_per_second: int,
        max_age: timedelta,
    ) -> None:
        self._database = database
        self._rewraps = rewraps
        self._rewrapper = rewrapper
        self._audit = audit
        self._clock = clock
        self._rewrap = rewrap
        self._keys_per_second = keys_per_second
        self._max_age = max_age

    def __call__(self) -> MasterKeysSeen:
        """
        Raises:
            StateUnavailable, StateCorrupt, AuditUnavailable.
        """
        states: dict[str, MasterKeyState | None] = {}
        old = unreadable = started = 0
        for project in self._projects():
            if project.master_key not in states:
                states[project.master_key] = self._state(project.master_key)
            state = states[project.master_key]
            if state is None:
                unreadable += 1
                continue
            older = self._rewraps.keys_under_older(project.name, state.latest_version)
            old += older
            if older and self._rewrap:
                started += self._start(project, state)
        overdue = sum(state is not None and self._overdue(state) for state in states.values())
        return MasterKeysSeen(overdue, old, unreadable, started)

    def _projects(self) -> Iterator[Project]:
        token = ""
        while True:
            with self._database.read() as tx:
                page = tx.projects.list(_PAGE, token)
            yield from page.items
            token = page.next_page_token
            if not token:
                return

    def _state(self, master_key: str) -> MasterKeyState | None:
        try:
            return self._rewrapper.describe(master_key)
        except ServiceError:
            return None  # counted; readiness tells of outages

    def _overdue(self, state: MasterKeyState) -> bool:
        allowed = self._max_age
        if state.auto_rotate_period is not None:
            allowed = min(allowed, state.auto_rotate_period + _LATE)
        return self._clock.now() - state.latest_version_create_time > allowed

    def _start(self, project: Project, state: MasterKeyState) -> bool:
        """Whether a rewrap was started: none runs, none is paused, and none has just failed."""
        now = self._clock.now()
        latest = self._rewraps.latest(project.name)
        if latest is not None and (
            not latest.done
            or (
                latest.failed
                and latest.target_version >= state.latest_version
                and now - latest.update_time < _AGAIN_AFTER_FAILURES
            )
        ):
            return False
        rewrap = new_rewrap(
            project.name,
            project.master_key,
            state.latest_version,
            OURSELVES,
            now,
            self._keys_per_second,
        )
        self._audit.append(
            AuditRecord(
                time=now,
                event="RewrapDataKeys",
                outcome=Outcome.OK,
                resource=str(project.name),
                details={"target_version": str(state.latest_version), "started_by": OURSELVES},
            )
        )
        return self._rewraps.start(rewrap).name == rewrap.name
