"""Reads a policy set from a folder, and lets it through only if it is what its authors mean.

A set is `*.cedar` files, in the order of their names, and `canaries.json`: cases that must be
permitted and cases that must not. Validation alone lets a permit-all through (DESIGN §6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import cedarpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kms_service.domain.decisions import Action

SCHEMA_FILE = Path(__file__).with_name("modelkms.cedarschema")
CANARIES = "canaries.json"

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class PolicySetRefused(Exception):
    """The set cannot be used; the message says what is wrong and where."""


class CanaryCase(BaseModel):
    """One case: who, what, on what, and whether it must be permitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    principal: str
    """SPIFFE ID."""
    action: Action
    project: str
    model: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    attributes: dict[str, str] = Field(default_factory=dict)
    permitted: bool


class _Canaries(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: tuple[CanaryCase, ...]


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a policy's annotations say of leases; None: nothing."""

    ttl: timedelta | None
    max_ttl: timedelta | None


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A parsed, validated set. Its canaries have yet to be run."""

    policies: cedarpy.PolicySet
    schema: cedarpy.Schema
    terms: Mapping[str, LeaseTerms]
    """By policy id."""
    canaries: tuple[CanaryCase, ...]


def read_policy_set(folder: Path) -> PolicySet:
    """Parse and validate the set in `folder`.

    Raises:
        PolicySetRefused: unreadable, empty, not valid against the schema, a policy without an
            `@id` or with one that is taken, an annotation that is no duration, or canary cases
            that do not hold both a case to permit and a case to refuse.
    """
    try:
        files = sorted(folder.glob("*.cedar"))
        text = "\n".join(file.read_text() for file in files)
        canaries = (folder / CANARIES).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicySetRefused(f"cannot read the policy set in {folder}: {error}") from error
    if not files:
        raise PolicySetRefused(f"no *.cedar files in {folder}")
    schema_text = SCHEMA_FILE.read_text()
    named = _with_their_ids(text)
    result = cedarpy.validate_policies(text, schema_text)
    if not result.validation_passed:
        raise PolicySetRefused("; ".join(str(error) for error in result.errors))
    try:
        return PolicySet(
            policies=cedarpy.PolicySet.from_json_str(json.dumps(named)),
            schema=cedarpy.Schema.from_str(schema_text),
            terms={
                policy_id: _terms(policy_id, policy.get("annotations", {}))
                for policy_id, policy in named["staticPolicies"].items()
            },
            canaries=_canary_cases(canaries),
        )
    except ValueError as error:
        raise PolicySetRefused(str(error)) from error


def _with_their_ids(text: str) -> dict[str, Any]:
    """The set as JSON, each policy under its `@id`: cedarpy would name them policy0, policy1."""
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
    )


def _duration(policy_id: str, name: str, annotations: Mapping[str, str]) -> timedelta | None:
    if name not in annotations:
        return None
    match = _DURATION.fullmatch(annotations[name])
    if match is None:
        raise PolicySetRefused(f'{policy_id}: @{name} must be like "30s", "15m", "1h" or "7d"')
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _canary_cases(text: str) -> tuple[CanaryCase, ...]:
    try:
        cases = _Canaries.model_validate_json(text).cases
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PolicySetRefused(f"{CANARIES}: {where}: {first['msg']}") from error
    if {case.permitted for case in cases} != {True, False}:
        raise PolicySetRefused(
            f"{CANARIES} must hold cases that are permitted and cases that are not"
        )
    return cases
