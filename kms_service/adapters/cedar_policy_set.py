"""Reads a policy set, and lets it through only if it is what its authors mean.

A set is `*.cedar` files, in the order of their names; `canaries.json`: cases that must be
permitted and cases that must not; and `groups.json`, if principals are put in groups. Validation
alone lets a permit-all through (DESIGN §6).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import cedarpy
from modelkms_api.encoding import length_prefixed
from pydantic import BaseModel, ConfigDict, ValidationError

from kms_service.adapters.cedar_canaries import CanaryFile
from kms_service.domain.identity import Principal, principal_of

SCHEMA_FILE = Path(__file__).with_name("modelkms.cedarschema")
CANARIES = "canaries.json"
GROUPS = "groups.json"

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_COUNT = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class PolicySetRefused(Exception):
    """The set cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """The text of a set.

    Attributes:
        policies: file name to Cedar text.
        canaries: text of canaries.json.
        groups: text of groups.json; empty without one.
    """

    policies: Mapping[str, str]
    canaries: str
    groups: str = ""

    @property
    def named(self) -> Mapping[str, str]:
        """All files there are, by name."""
        groups = {GROUPS: self.groups} if self.groups else {}
        return {**self.policies, CANARIES: self.canaries, **groups}

    @property
    def text(self) -> str:
        """All policies, in the order of their files' names."""
        return "\n".join(self.policies[name] for name in sorted(self.policies))

    @property
    def epoch(self) -> str:
        """SHA-256 of everything, hexadecimal: another for any other set."""
        parts = [part for name in sorted(self.policies) for part in (name, self.policies[name])]
        encoded = [part.encode() for part in (*parts, self.canaries, self.groups)]
        return hashlib.sha256(length_prefixed(b"modelkms-policy-set-v1", *encoded)).hexdigest()


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a policy's annotations say of leases; None: nothing."""

    ttl: timedelta | None = None
    max_ttl: timedelta | None = None
    max_renewals: int | None = None
    max_live: int | None = None
    one_time: bool = False
    max_offline: timedelta | None = None


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A parsed, validated set. Its canaries have yet to be run.

    Attributes:
        files: what it was made from.
        source: each policy in Cedar's JSON form, by id.
        terms: by policy id.
        groups: name to members: ids, or prefixes of ids that end in `*`.
    """

    files: PolicyFiles
    policies: cedarpy.PolicySet
    schema: cedarpy.Schema
    source: Mapping[str, Any]
    terms: Mapping[str, LeaseTerms]
    canaries: CanaryFile
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def groups_of(self, principal_id: str) -> Iterator[str]:
        """The groups of groups.json that the principal is in."""
        return groups_with(self.groups, principal_id)

    def named_principals(self) -> Iterator[Principal]:
        """Those that policies, groups or canary cases name by a whole id."""
        ids = {
            entity["id"]
            for policy in self.source.values()
            if (entity := policy["principal"].get("entity"))
            and entity["type"].endswith("::Principal")
        }
        ids |= {member for members in self.groups.values() for member in members}
        ids |= {case.principal for case in self.canaries.cases if case.permitted}
        for principal_id in sorted(ids):
            if not principal_id.endswith("*"):
                try:
                    yield principal_of(principal_id)
                except ValueError:
                    continue


class _Groups(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: dict[str, tuple[str, ...]]


def read_policy_files(folder: Path) -> PolicyFiles:
    """
    Raises:
        PolicySetRefused: unreadable, or without `*.cedar` or canaries.
    """
    try:
        policies = {file.name: file.read_text() for file in sorted(folder.glob("*.cedar"))}
        canaries = (folder / CANARIES).read_text()
        groups = (folder / GROUPS).read_text() if (folder / GROUPS).exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise PolicySetRefused(f"cannot read the policy set in {folder}: {error}") from error
    if not policies:
        raise PolicySetRefused(f"no *.cedar files in {folder}")
    return PolicyFiles(policies, canaries, groups)


def parse_policy_set(files: PolicyFiles) -> PolicySet:
    """Parse and validate.

    Raises:
        PolicySetRefused: not valid against the schema, a policy without an `@id` or with one that
            is taken, an annotation that is no duration, groups that cannot be read, or canary
            cases that do not hold both a case to permit and a case to refuse.
    """
    schema_text = SCHEMA_FILE.read_text()
    named = with_their_ids(files.text)
    result = cedarpy.validate_policies(files.text, schema_text)
    if not result.validation_passed:
        raise PolicySetRefused("; ".join(str(error) for error in result.errors))
    try:
        policies = cedarpy.PolicySet.from_json_str(json.dumps(named))
        schema = cedarpy.Schema.from_str(schema_text)
    except ValueError as error:
        raise PolicySetRefused(str(error)) from error
    source = named["staticPolicies"]
    return PolicySet(
        files=files,
        policies=policies,
        schema=schema,
        source=source,
        terms={
            policy_id: _terms(policy_id, policy.get("annotations", {}))
            for policy_id, policy in source.items()
        },
        canaries=_canaries(files.canaries),
        groups=parse_groups(files.groups),
    )


def with_their_ids(text: str) -> dict[str, Any]:
    """The set as JSON, each policy under its `@id`: cedarpy would name them policy0, policy1.

    Raises:
        PolicySetRefused: not Cedar, or a policy without an id or with one that is taken.
    """
    try:
        parsed: dict[str, Any] = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise PolicySetRefused(str(error)) from error
    if parsed.get("templates") or parsed.get("templateLinks"):
        raise PolicySetRefused("policy templates are not supported")
    named: dict[str, Any] = {}
    for policy in parsed["staticPolicies"].values():
        policy_id = policy.get("annotations", {}).get("id")
        if not policy_id:
            raise PolicySetRefused('every policy needs an annotation @id("…")')
        if policy_id in named:
            raise PolicySetRefused(f'two policies have @id("{policy_id}")')
        named[policy_id] = policy
    return {**parsed, "staticPolicies": named}


def _terms(policy_id: str, annotations: Mapping[str, str]) -> LeaseTerms:
    return LeaseTerms(
        _duration(policy_id, "lease_ttl", annotations),
        _duration(policy_id, "max_lease_ttl", annotations),
        _count(policy_id, "max_lease_renewals", annotations),
        _count(policy_id, "max_live_leases", annotations),
        _flag(policy_id, "one_time_lease", annotations),
        _duration(policy_id, "max_offline", annotations),
    )


def _count(policy_id: str, name: str, annotations: Mapping[str, str]) -> int | None:
    if name not in annotations:
        return None
    if _COUNT.fullmatch(annotations[name] or "") is None:
        raise PolicySetRefused(f'{policy_id}: @{name} must be a number, "0" to "999999"')
    return int(annotations[name])


def _flag(policy_id: str, name: str, annotations: Mapping[str, str]) -> bool:
    # `@one_time_lease` alone is an annotation without a value.
    if (annotations.get(name) or "true") != "true":
        raise PolicySetRefused(f'{policy_id}: @{name} must be "true", or not be there')
    return name in annotations


def _duration(policy_id: str, name: str, annotations: Mapping[str, str]) -> timedelta | None:
    if name not in annotations:
        return None
    match = _DURATION.fullmatch(annotations[name] or "")
    if match is None:
        raise PolicySetRefused(f'{policy_id}: @{name} must be like "30s", "15m", "1h" or "7d"')
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _canaries(text: str) -> CanaryFile:
    try:
        canaries = CanaryFile.model_validate_json(text)
    except ValidationError as error:
        raise PolicySetRefused(_told(CANARIES, error)) from error
    if {case.permitted for case in canaries.cases} != {True, False}:
        raise PolicySetRefused(
            f"{CANARIES} must hold cases that are permitted and cases that are not"
        )
    return canaries


def parse_groups(text: str) -> dict[str, tuple[str, ...]]:
    """
    Raises:
        PolicySetRefused: not what groups.json may hold.
    """
    if not text:
        return {}
    try:
        groups = _Groups.model_validate_json(text).groups
    except ValidationError as error:
        raise PolicySetRefused(_told(GROUPS, error)) from error
    for name, members in groups.items():
        # A colon is what tells a token's groups from ours.
        if not name or ":" in name:
            raise PolicySetRefused(f"{GROUPS}: a group's name must not be empty or hold a colon")
        for member in members:
            _check_member(name, member)
    return groups


def _check_member(group: str, member: str) -> None:
    """A prefix must hold a whole trust domain or issuer, or it would reach into foreign ones."""
    try:
        known = principal_of(member)
    except ValueError as error:
        raise PolicySetRefused(f"{GROUPS}: {group}: a member is {error}") from error
    inside = known.path if known.trust_domain else known.subject
    if "*" in member[:-1] or (member.endswith("*") and not inside):
        raise PolicySetRefused(
            f"{GROUPS}: {group}: a * stands at the end only, behind a whole trust domain or issuer"
        )


def groups_with(groups: Mapping[str, tuple[str, ...]], principal_id: str) -> Iterator[str]:
    """Those that the principal is in."""
    for name, members in groups.items():
        if any(_is_member(principal_id, member) for member in members):
            yield name


def _is_member(principal_id: str, member: str) -> bool:
    if member.endswith("*"):
        return principal_id.startswith(member[:-1])
    return principal_id == member


def _told(file: str, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{file}: {where}: {first['msg']}"
