"""Whether the database says what was done: held against the audit log and Vault (F56, F60).

A row can be put back: by hand, or with a whole old backup. What is found then gives no key any
more: destroyed again if it was destroyed, disabled if it was not open, whoever is right. An officer
enables it again if the row was right after all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import NO_DATA_KEY, Version, VersionState, WrappedDataKey
from kms_service.domain.errors import MasterKeyMisconfigured, ServiceError
from kms_service.domain.names import ProjectName, VersionName
from kms_service.domain.ports import (
    AuditLog,
    Clock,
    Database,
    LeaseFilter,
    Rewrapper,
    Tombstones,
    Transaction,
)
from kms_service.usecases.version_records import CHANGES, state_of

_BATCH = 1000
_SKEW = timedelta(seconds=30)
"""Replicas' clocks differ by less: within it a version's revision says what came later."""
WITHHELD = "WithholdVersion"
_DESTROYED_AGAIN = "destroyed again"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the audit log last says of a version."""

    state: VersionState
    revision: int
    time: datetime
    event: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A version that is not as it must be."""

    version: VersionName
    what: str
    withheld: str = ""
    """What was done about it: `destroyed again`, `disabled`, or empty."""


@dataclass(frozen=True, slots=True)
class StateReport:
    versions: int
    unrecorded: int
    """Versions of which the audit logs given say nothing."""
    findings: tuple[Finding, ...]


def recorded_states(records: Iterable[Mapping[str, Any]]) -> dict[str, Recorded]:
    """By version uid, from records in order of time. An act whose record was followed by its
    failure (the commit failed) did not happen."""
    found: dict[str, list[Recorded]] = {}
    for record in records:
        details = record["details"]
        if record["event"] not in CHANGES:
            continue
        uid = details.get("version_uid", "")
        if record["outcome"] != Outcome.OK.value:
            found[uid] = [each for each in found.get(uid, []) if not _same_act(each, record)]
            continue
        for prefix in ("version_", "rekeyed_"):
            # Of a rekey one record tells both: the new version, and the old one that it disabled.
            changed = _recorded(record, prefix)
            if changed is not None:
                history = found.setdefault(details[f"{prefix}uid"], [])
                if not history or _later(changed, history[-1]):
                    history.append(changed)
                del history[:-2]
    return {uid: history[-1] for uid, history in found.items() if history}


def _recorded(record: Mapping[str, Any], prefix: str) -> Recorded | None:
    details = record["details"]
    state_field = "state" if prefix == "version_" else f"{prefix}state"
    revision_field = "revision" if prefix == "version_" else f"{prefix}revision"
    if not {f"{prefix}uid", state_field, revision_field} <= details.keys():
        return None
    return Recorded(
        VersionState(details[state_field]),
        int(details[revision_field]),
        datetime.fromisoformat(record["time"]),
        record["event"],
        record["request_id"],
    )


def _later(changed: Recorded, than: Recorded) -> bool:
    if WITHHELD in (changed.event, than.event):
        return True  # it counts on from the row that was put back
    return changed.revision >= than.revision or changed.time > than.time + _SKEW


def _same_act(recorded: Recorded, failure: Mapping[str, Any]) -> bool:
    act = (recorded.event, recorded.request_id)
    return bool(recorded.request_id) and act == (failure["event"], failure["request_id"])


class VerifyState:
    """Run by a command of the operator's, so there is no policy to ask."""

    def __init__(
        self,
        *,
        database: Database,
        tombstones: Tombstones,
        rewrapper: Rewrapper,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._database = database
        self._tombstones = tombstones
        self._rewrapper = rewrapper
        self._audit = audit
        self._clock = clock

    def __call__(
        self, recorded: Mapping[str, Recorded], *, withhold: bool, keys: bool
    ) -> StateReport:
        """Look at every version.

        Args:
            recorded: from `recorded_states`.
            withhold: what is found gives no key from now on; else it is only told.
            keys: have Vault try each wrapped key under its version's context; nobody sees a key.

        Raises:
            StateUnavailable, AuditUnavailable, and outages of Vault: run it again.
        """
        destroyed, findings, seen, unrecorded = self._tombstones.uids(), [], 0, 0
        for batch in self._batches():
            seen += len(batch)
            for version in batch:
                last = recorded.get(version.uid)
                unrecorded += last is None
                why = _why_withhold(version, last, gone=version.uid in destroyed)
                if why is not None:
                    what, state = why
                    done = self._withhold(version, state, what) if withhold else ""
                    findings.append(Finding(version.name, what, done))
            if keys:
                findings += self._key_findings(batch)
        if any(finding.withheld == _DESTROYED_AGAIN for finding in findings):
            # As many are DESTROYED as before it was put back: the next sweep would see no need.
            self._database.scrub(again=True)
        return StateReport(seen, unrecorded, tuple(findings))

    def _batches(self) -> Iterator[list[Version]]:
        after: VersionName | None = None
        while True:
            with self._database.read() as tx:
                batch = list(tx.versions.scan(after, _BATCH))
            if not batch:
                return
            yield batch
            after = batch[-1].name

    def _withhold(self, found: Version, state: VersionState, what: str) -> str:
        def act(tx: Transaction) -> str:
            version = tx.versions.get(found.name)
            if version is None or version.revision != found.revision:
                return ""  # changed meanwhile, by an act that is recorded
            gone = state is VersionState.DESTROYED
            held = replace(
                version,
                state=state,
                wrapped_key=NO_DATA_KEY if gone else version.wrapped_key,
                destruction=None,
                revision=version.revision + 1,
            )
            tx.versions.update(held)
            name, now = version.name, self._clock.now()
            of_version = LeaseFilter(name.project, model=name.model, number=name.number)
            tx.leases.revoke(of_version, now)
            self._audit.append(
                AuditRecord(
                    time=now,
                    event=WITHHELD,
                    outcome=Outcome.OK,
                    resource=str(name),
                    details={**state_of(held), "was": version.state.value, "why": what},
                )
            )
            return _DESTROYED_AGAIN if gone else "disabled"

        return self._database.transact(act)

    def _key_findings(self, batch: list[Version]) -> Iterator[Finding]:
        by_project: dict[str, list[Version]] = {}
        for version in batch:
            if version.wrapped_key != NO_DATA_KEY:
                by_project.setdefault(version.name.project, []).append(version)
        for project, versions in by_project.items():
            with self._database.read() as tx:
                found = tx.projects.get(ProjectName(project))
            assert found is not None  # versions refer to it
            keys = [
                (each.wrapped_key, data_key_context(each.name.parent, each.uid))
                for each in versions
            ]
            answers: Sequence[WrappedDataKey | ServiceError]
            try:
                answers = self._rewrapper.rewrap(found.master_key, keys)
            except MasterKeyMisconfigured as error:  # lost; those of other projects are tried
                answers = [error] * len(keys)
            for version, answer in zip(versions, answers, strict=True):
                # What Vault rewrapped is dropped: that it could is what was asked.
                if isinstance(answer, ServiceError):
                    yield Finding(version.name, f"its wrapped key gives none: {answer.reason}")


def _why_withhold(
    version: Version, last: Recorded | None, *, gone: bool
) -> tuple[str, VersionState] | None:
    """What is wrong and what it is to be; None if nothing is."""
    if version.state is VersionState.DESTROYED:
        return None  # nothing can be had of it, whatever it should be
    if gone:
        return f"is {version.state}, and was destroyed: it has a tombstone", VersionState.DESTROYED
    if last is None or (last.state is version.state and last.revision <= version.revision):
        return None
    what = f"is {version.state} (revision {version.revision}); the audit log says {last.state}"
    if last.state is version.state:
        what += f" at revision {last.revision}"
    if last.state is VersionState.DESTROYED:
        return what, VersionState.DESTROYED
    if version.state is VersionState.PENDING:
        return what, VersionState.DESTROYED
    return what, VersionState.DISABLED
