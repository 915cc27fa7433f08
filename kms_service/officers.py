"""The first officer, and the way back in when no officer is left.

Both are commands of whoever may write the service's policy folder and database: operations. Both
are recorded before they take effect. Neither gives anybody a data key: an officer sees and stops,
and opens nothing.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.cedar import CedarPolicyEngine, evaluate
from kms_service.adapters.cedar_policy_set import (
    CANARIES,
    GROUPS,
    PolicyFiles,
    PolicySet,
    PolicySetRefused,
    parse_policy_set,
    read_policy_files,
)
from kms_service.adapters.clock import LogicalClock
from kms_service.adapters.database import SqlDatabase
from kms_service.config import Config
from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.decisions import AccessRequest, Action, Resource
from kms_service.domain.errors import ConfigurationError
from kms_service.domain.identity import principal_of
from kms_service.parts import open_database
from kms_service.policy_reload import BREAK_GLASS

OFFICERS = "security-officers"
LONGEST = timedelta(hours=4)

_MILESTONE = "officer-bootstrapped"
_CHAIN = "officers"
_STARTER_FILES = ("guards.cedar", "roles.cedar")
_GROUPS_OF_STARTER = ("publishers", "readers", OFFICERS, "auditors", "operators")


@dataclass(frozen=True, slots=True)
class BrokenGlass:
    """Until when whom the glass is broken for, and the file that says so."""

    principal: str
    until: datetime
    file: Path


def bootstrap_officer(config: Config, officer: str) -> Path:
    """Make `officer` the first security officer, once; the policy folder.

    An empty policy folder gets the starter policies, and nobody else in any group. A folder with
    policies gets the officer into its group `security-officers`.

    Raises:
        ConfigurationError: there was a first officer already, `officer` is no principal, or the
            policies would not make an officer of it (one who administers, and opens nothing).
        StateUnavailable, AuditUnavailable: it could not be recorded, so it did not happen.
    """
    _check_principal(config, officer)
    folder = config.policy.folder
    with _records(config, "officer_bootstrapped", officer) as records:
        files = _with_officer(folder, officer)
        _require_officer(_passed(files, _in_force(folder)), officer)
        # Recorded first. A crash after this leaves a record without an officer: the same officer
        # may be named again, since that makes no second one.
        before = records.database.reach_milestone(_MILESTONE, officer, records.now())
        if before != officer:
            raise ConfigurationError(
                f"the first officer was {before}: officers make officers, by policy; "
                "if none is left: modelkms-server break-glass"
            )
        records.append(epoch=files.epoch)
        _write(folder, files)
    return folder


def break_glass(
    config: Config, principal: str, reason: str, lasts: timedelta = timedelta(hours=1)
) -> BrokenGlass:
    """Let `principal` administer for a while, by a policy that ends by itself.

    Raises:
        ConfigurationError: no principal, no reason, too long, or the policies in the folder are
            not whole (mend those first).
        StateUnavailable, AuditUnavailable: it could not be recorded, so it did not happen.
    """
    _check_principal(config, principal)
    if not reason.strip() or not reason.isprintable():
        raise ConfigurationError("give a reason, in one line: it is recorded")
    if not timedelta(minutes=1) <= lasts <= LONGEST:
        raise ConfigurationError("the glass is broken for a minute to four hours")
    folder = config.policy.folder
    with _records(config, "glass_broken", principal) as records:
        until = (records.now() + lasts).astimezone(UTC).replace(microsecond=0)
        name = f"{BREAK_GLASS}-{secrets.token_hex(4)}"
        before = _read(folder)
        policies = {**before.policies, f"{name}.cedar": _glass_policy(name, principal, until)}
        files = PolicyFiles(policies, before.canaries, before.groups)
        _require_officer(_passed(files, _in_force(folder)), principal, records.now())
        records.append(
            reason=reason,
            until=until.isoformat(),
            policy=name,
            epoch=files.epoch,
        )
        file = folder / f"{name}.cedar"
        _replace(file, policies[file.name])
    return BrokenGlass(principal, until, file)


@dataclass(frozen=True, slots=True)
class _Records:
    """Where both acts are recorded: the database, and an audit chain of their own."""

    database: SqlDatabase
    audit: FileAuditLog
    clock: LogicalClock
    event: str
    officer: str

    def now(self) -> datetime:
        return self.clock.now()

    def append(self, outcome: Outcome = Outcome.OK, **details: str) -> None:
        self.audit.append(
            AuditRecord(
                time=self.now(),
                event=self.event,
                outcome=outcome,
                resource="service",
                details={"officer": self.officer, "by": f"uid {os.getuid()}", **details},
            )
        )


@contextmanager
def _records(config: Config, event: str, officer: str) -> Iterator[_Records]:
    """What is refused is recorded, too: somebody tried."""
    with closing(open_database(config)) as database:
        clock = LogicalClock(database, wall=database.wall)
        with closing(FileAuditLog(config.audit.folder / _CHAIN, clock.now)) as audit:
            records = _Records(database, audit, clock, event, officer)
            try:
                yield records
            except ConfigurationError as error:
                records.append(Outcome.DENIED, cause=error.message)
                raise


# --- the policy set ------------------------------------------------------------------------------


def starter_policies() -> Path:
    """The shipped set: in a checkout under deploy/, in a wheel beside this file."""
    packaged = Path(__file__).with_name("starter_policies")
    return packaged if packaged.exists() else Path(__file__).parents[1] / "deploy" / "policies"


def _with_officer(folder: Path, officer: str) -> PolicyFiles:
    if not any(folder.glob("*.cedar")):
        groups = {name: [officer] if name == OFFICERS else [] for name in _GROUPS_OF_STARTER}
        starter = starter_policies()
        policies = {name: (starter / name).read_text() for name in _STARTER_FILES}
        return PolicyFiles(policies, _first_canaries(officer), _json({"groups": groups}))
    before = _read(folder)
    known = _parsed(before).groups
    members = [*known.get(OFFICERS, ()), *([] if officer in known.get(OFFICERS, ()) else [officer])]
    groups = {**{name: list(each) for name, each in known.items()}, OFFICERS: members}
    return PolicyFiles(before.policies, before.canaries, _json({"groups": groups}))


def _first_canaries(officer: str) -> str:
    """What must stay so: the officer stops and does not open."""
    place = {"project": "canary", "model": "canary"}
    cases = [
        {"principal": officer, "action": "RevokeLeases", **place, "permitted": True},
        {"principal": officer, "action": "LeaseDataKey", **place, "permitted": False},
        {"principal": officer, "action": "CreateVersion", **place, "permitted": False},
    ]
    return _json({"cases": cases})


def _glass_policy(name: str, principal: str, until: datetime) -> str:
    return (
        "// Written by `modelkms-server break-glass`. Over by itself; remove it afterwards.\n"
        f'@id("{name}")\n'
        "permit (\n"
        f'  principal == ModelKMS::Principal::"{principal}",\n'
        '  action in ModelKMS::Action::"Administer",\n'
        "  resource\n"
        f') when {{ context.time < datetime("{until:%Y-%m-%dT%H:%M:%SZ}") }};\n'
    )


def _require_officer(policies: PolicySet, principal: str, now: datetime | None = None) -> None:
    """An officer administers, and opens nothing.

    Raises:
        ConfigurationError: under these policies `principal` would be none.
    """
    place = Resource("canary", "canary")
    time = now or datetime.now(UTC)

    def may(action: Action) -> bool:
        request = AccessRequest(principal_of(principal), action, place, time)
        return evaluate(policies, request).permitted

    if not may(Action.REVOKE_LEASES):
        raise ConfigurationError(
            f"policy.folder: its policies do not let the group {OFFICERS} administer; begin from "
            "deploy/policies, or have `principal in ModelKMS::Group` say so"
        )
    if may(Action.LEASE_DATA_KEY) or may(Action.CREATE_VERSION):
        raise ConfigurationError(
            f"{principal} may open or publish models: an officer may not; name another identity"
        )


def _check_principal(config: Config, principal: str) -> None:
    try:
        known = principal_of(principal)
    except ValueError as error:
        raise ConfigurationError(f"the principal is {error}") from error
    served = (*config.server.trust_domains, *(each.name for each in config.issuers))
    if (known.trust_domain or known.issuer) not in served:
        raise ConfigurationError("the principal is of no trust domain and no issuer served here")
    # It is written between quotes.
    if re.search(r'["\\*]', principal) or not principal.isprintable():
        raise ConfigurationError("the principal must be a whole id, without quotes and wildcards")


def _read(folder: Path) -> PolicyFiles:
    try:
        return read_policy_files(folder)
    except PolicySetRefused as error:
        raise ConfigurationError(f"policy.folder: {error}") from error


def _in_force(folder: Path) -> PolicySet | None:
    """As it stands; None where there is none yet."""
    return _parsed(_read(folder)) if any(folder.glob("*.cedar")) else None


def _parsed(files: PolicyFiles) -> PolicySet:
    try:
        return parse_policy_set(files)
    except PolicySetRefused as error:
        raise ConfigurationError(f"policy.folder: {error}") from error


def _passed(files: PolicyFiles, before: PolicySet | None) -> PolicySet:
    """`files` through the gate that the service will put them through."""
    try:
        return CedarPolicyEngine.candidate(files, before)
    except PolicySetRefused as error:
        raise ConfigurationError(f"policy.folder: {error}") from error


def _write(folder: Path, files: PolicyFiles) -> None:
    """Groups before policies: a service that reads in between permits less, not more."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / GROUPS, files.groups)
    _replace(folder / CANARIES, files.canaries)
    for name, text in files.policies.items():
        _replace(folder / name, text)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.new")
    try:
        with temporary.open("w") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except OSError as error:
        raise ConfigurationError(f"policy.folder: cannot write {file}: {error.strerror}") from error


def _json(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"
