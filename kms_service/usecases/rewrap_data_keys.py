"""Rewrapping a project's data keys under the newest version of its master key.

Started by an officer (or by the service, if it is configured to), carried on by every replica:

    claim a batch → Vault rewraps it → swap what is still as it was → again, until none is left

A worker that dies leaves its claim, which runs out; what it had swapped is done, what it had not
is given out again. No version is unreadable at any moment: a row has its old wrapped key or its
new one, and Vault opens both. The service never sees a data key here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    InvalidField,
    ServiceError,
    Throttled,
    Unavailable,
)
from kms_service.domain.identity import Caller
from kms_service.domain.names import ProjectName, RewrapName
from kms_service.domain.ports import AuditLog, Clock, Liveness, Rewrapper, Rewraps
from kms_service.domain.rewrapping import (
    Finished,
    NothingYet,
    Rewrap,
    RewrapBatch,
    RewrapFailure,
    Rewrapped,
    RewrapState,
)
from kms_service.usecases.authorisation import Gate, Permit

OURSELVES = "modelkms-server"
SHOWN_FAILURES = 100
MAX_KEYS_PER_SECOND = 1_000_000
_RATE_OVER_S = 10.0
_BATCHES_A_CLAIM = 16
_LARGEST_CLAIM = 5000
"""Data keys: each claim costs two commits, and a claim must end long before it runs out."""
_LONGEST_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class RewrapView:
    """An operation as it stands.

    Attributes:
        failures: at most 100 of those that failed.
        keys_per_second: done lately; 0 if that is not known.
        remaining: what is left takes so long at that rate; None if that is not known.
    """

    rewrap: Rewrap
    failures: tuple[RewrapFailure, ...] = ()
    keys_per_second: float = 0.0
    remaining: timedelta | None = None


class RewrapDataKeys:
    """Officers' side: start, look, watch, pause, resume."""

    def __init__(self, *, gate: Gate, rewraps: Rewraps, rewrapper: Rewrapper, clock: Clock) -> None:
        self._gate = gate
        self._rewraps = rewraps
        self._rewrapper = rewrapper
        self._clock = clock

    def start(self, caller: Caller, parent: ProjectName, keys_per_second: int) -> RewrapView:
        """A new operation; or the one that is not done yet, resumed if it was paused, under
        this rate.

        Raises:
            InvalidField: `keys_per_second`.
            ModelNotFoundOrDenied: missing, or not permitted; Vault was not called.
            MasterKeyMisconfigured, and outages.
        """
        if not 0 <= keys_per_second <= MAX_KEYS_PER_SECOND:
            raise InvalidField("keys_per_second", f"must be 0 to {MAX_KEYS_PER_SECOND}")
        with self._gate.admit(caller, Action.REWRAP_DATA_KEYS, parent) as permit:
            project = permit.require(permit.found.project)
            rewrap = new_rewrap(
                parent,
                project.master_key,
                self._rewrapper.describe(project.master_key).latest_version,
                caller.principal.id,
                self._clock.now(),
                keys_per_second,
            )
            # Recorded first: no data key moves without a record of who wanted it.
            permit.record(
                target_version=rewrap.target_version, keys_per_second=rewrap.keys_per_second
            )
            started = self._rewraps.start(rewrap)
            if started.name != rewrap.name:
                started = self._change(
                    permit,
                    started.name,
                    lambda found: replace(
                        found.resume(self._clock.now()), keys_per_second=keys_per_second
                    ),
                )
            return RewrapView(started)

    def get(self, caller: Caller, name: RewrapName) -> RewrapView:
        """
        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        with self._gate.admit(
            caller, Action.GET_MASTER_KEY, name.parent, event="GetRewrap"
        ) as permit:
            permit.require(permit.found.project)
            view = self._view(permit, name)
            permit.record(rewrap=name)
            return view

    def latest(self, caller: Caller, parent: ProjectName) -> RewrapView:
        """The project's rewrap that was started last.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted; or there was none.
        """
        with self._gate.admit(caller, Action.GET_MASTER_KEY, parent, event="GetRewrap") as permit:
            permit.require(permit.found.project)
            rewrap = permit.require(self._rewraps.latest(parent))
            permit.record(rewrap=rewrap.name)
            return RewrapView(rewrap, self._failures(rewrap))

    def watch(
        self, caller: Caller, name: RewrapName, every: timedelta, liveness: Liveness
    ) -> Iterator[RewrapView]:
        """The operation now, and again `every` so often until it is done.

        Raises: as `get`; DeadlineExceeded: nobody watches any more.
        """
        view = self.get(caller, name)
        seen = [(time.monotonic(), view.rewrap)]
        while True:
            yield view
            if view.rewrap.done:
                return
            _wait(every.total_seconds(), liveness)
            found = self._rewraps.get(name)
            if found is None:
                return
            seen = [*seen, (time.monotonic(), found)]
            while len(seen) > 2 and seen[-1][0] - seen[0][0] > _RATE_OVER_S:
                seen.pop(0)
            view = replace(_with_rate(seen), failures=self._failures(found))

    def pause(self, caller: Caller, name: RewrapName) -> RewrapView:
        """Batches in hand end; no further one begins, on any replica.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
            RewrapEnded.
        """
        return self._set(caller, name, "PauseRewrap", lambda found, now: found.pause(now))

    def resume(self, caller: Caller, name: RewrapName) -> RewrapView:
        """Raises: as `pause`."""
        return self._set(caller, name, "ResumeRewrap", lambda found, now: found.resume(now))

    def _set(
        self,
        caller: Caller,
        name: RewrapName,
        event: str,
        change: Callable[[Rewrap, datetime], Rewrap],
    ) -> RewrapView:
        with self._gate.admit(caller, Action.REWRAP_DATA_KEYS, name.parent, event=event) as permit:
            permit.require(permit.found.project)
            permit.require(self._rewraps.get(name))
            permit.note(rewrap=name)
            permit.record()
            changed = self._change(permit, name, lambda found: change(found, self._clock.now()))
            return RewrapView(changed, self._failures(changed))

    def _change(
        self, permit: Permit, name: RewrapName, change: Callable[[Rewrap], Rewrap]
    ) -> Rewrap:
        return permit.require(self._rewraps.change(name, change))

    def _view(self, permit: Permit, name: RewrapName) -> RewrapView:
        rewrap = permit.require(self._rewraps.get(name))
        return RewrapView(rewrap, self._failures(rewrap))

    def _failures(self, rewrap: Rewrap) -> tuple[RewrapFailure, ...]:
        if not rewrap.failed:
            return ()
        return tuple(self._rewraps.failures(rewrap.name, SHOWN_FAILURES))


class RewrapCounters(Protocol):
    """What is counted of the work of this process."""

    def rewrapped(self, keys: int) -> None: ...
    def skipped(self, keys: int) -> None:
        """Changed by others meanwhile."""

    def failed(self, keys: int) -> None: ...


class RewrapWorker:
    """One of the many who do it; called by timers, so there is no policy to ask. Several threads
    may share one."""

    def __init__(
        self,
        *,
        rewraps: Rewraps,
        rewrapper: Rewrapper,
        audit: AuditLog,
        clock: Clock,
        counters: RewrapCounters,
    ) -> None:
        self._rewraps = rewraps
        self._rewrapper = rewrapper
        self._audit = audit
        self._clock = clock
        self._counters = counters

    def __call__(self, stopping: Callable[[], bool]) -> int:
        """Work until nothing is left that this process could do, or `stopping()`; how many data
        keys were moved.

        Raises:
            an outage of Vault or the database: the rest is done the next time.
        """
        moved = 0
        while running := self._rewraps.running():
            # In turns, so that a slow or slowed one does not hold up the others.
            waits = []
            for rewrap in running:
                if stopping():
                    return moved
                size = min(_LARGEST_CLAIM, _BATCHES_A_CLAIM * self._rewrapper.rewrap_batch_size)
                match self._rewraps.claim(rewrap.name, size, self._clock.now()):
                    case RewrapBatch() as batch:
                        moved += self._move(batch)
                    case NothingYet(wait):
                        waits.append(wait.total_seconds())
                    case Finished(ended):
                        self._record(ended)
            if len(waits) == len(running):
                time.sleep(min(*waits, _LONGEST_WAIT_S))
        return moved

    def _move(self, batch: RewrapBatch) -> int:
        """Rewrap one batch and store what became of it.

        Raises:
            the outage that Vault is in; what was done before it is stored, the rest given back.
        """
        master_key = batch.rewrap.master_key
        keys = [
            (item.wrapped_key, data_key_context(item.version.parent, item.uid))
            for item in batch.items
        ]
        try:
            answers = self._rewrapper.rewrap(master_key, keys)
        except ServiceError:
            self._rewraps.settle(batch, [], [], self._clock.now(), whole=False)
            raise
        rewrapped, failed, outage = [], [], None
        for item, answer in zip(batch.items, answers, strict=True):
            if isinstance(answer, WrappedDataKey):
                rewrapped.append(Rewrapped(item, answer))
            elif isinstance(answer, Unavailable | Throttled):
                outage = answer
            else:
                failed.append(RewrapFailure(item.version, answer.reason))
        swapped = self._rewraps.settle(
            batch, rewrapped, failed, self._clock.now(), whole=outage is None
        )
        self._counters.rewrapped(swapped)
        self._counters.skipped(len(rewrapped) - swapped)
        self._counters.failed(len(failed))
        if outage is not None:
            raise outage
        return swapped

    def _record(self, rewrap: Rewrap) -> None:
        self._audit.append(
            AuditRecord(
                time=self._clock.now(),
                event="RewrapFinished",
                outcome=Outcome.FAILED if rewrap.failed else Outcome.OK,
                resource=str(rewrap.name.parent),
                details={
                    "rewrap": str(rewrap.name),
                    "target_version": str(rewrap.target_version),
                    "rewrapped": str(rewrap.rewrapped),
                    "failed": str(rewrap.failed),
                },
            )
        )


def new_rewrap(
    parent: ProjectName,
    master_key: str,
    target_version: int,
    started_by: str,
    now: datetime,
    keys_per_second: int,
) -> Rewrap:
    return Rewrap(
        name=RewrapName(parent.project, secrets.token_hex(16)),
        state=RewrapState.RUNNING,
        master_key=master_key,
        target_version=target_version,
        started_by=started_by,
        keys_per_second=keys_per_second,
        total=0,
        rewrapped=0,
        failed=0,
        create_time=now,
        update_time=now,
    )


def _with_rate(seen: list[tuple[float, Rewrap]]) -> RewrapView:
    (began, before), (ended, now) = seen[0], seen[-1]
    done = now.rewrapped + now.failed - before.rewrapped - before.failed
    rate = done / (ended - began) if ended > began else 0.0
    running = now.state is RewrapState.RUNNING
    return RewrapView(
        now,
        keys_per_second=rate,
        remaining=timedelta(seconds=now.left / rate) if rate > 0 and running else None,
    )


def _wait(seconds: float, liveness: Liveness) -> None:
    """In short steps: whoever goes away must not hold a thread."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        liveness.check()
        time.sleep(min(left, 0.25))
