"""An access request as Cedar takes it, and as the decision cache knows it again."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from modelkms_api.v1.key_transport_pb2 import KeyTransportSuite

from kms_service.domain.decisions import AccessRequest, Circumstances, Resource
from kms_service.domain.identity import Principal

NAMESPACE = "ModelKMS"
SERVICE = "modelkms"
"""Id of the one entity of type Service."""

_SUITE_PREFIX = "KEY_TRANSPORT_SUITE_"
_VERSION = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})(?![0-9])[!-~]{0,64}", re.ASCII)

CanonicalRequest = tuple[object, ...]
"""Equal for two requests exactly if no policy can tell them apart."""


def canonical(request: AccessRequest) -> CanonicalRequest:
    """The whole request, time to the minute. Labels stand in it themselves, so that a model whose
    labels change is another request."""
    principal, resource, around = request.principal, request.resource, request.circumstances
    return (
        principal,
        request.action,
        resource.project,
        resource.model,
        _sorted(resource.labels),
        minute(request.time),
        around.source,
        around.suite,
        around.client_version,
        _sorted(around.attributes),
    )


def _sorted(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items())) if values else ()


def minute(time: datetime) -> datetime:
    """`time` in UTC, cut to its minute: what policies see of it."""
    return time.astimezone(UTC).replace(second=0, microsecond=0)


def cedar_request(request: AccessRequest) -> dict[str, Any]:
    """Principal, action, resource and context in Cedar's JSON form."""
    return {
        "principal": principal_uid(request.principal.id),
        "action": {"type": f"{NAMESPACE}::Action", "id": request.action.value},
        "resource": resource_uid(request.resource),
        "context": _context(request.principal, request.time, request.circumstances),
    }


def entities(
    principal: Principal, resource: Resource, groups: Iterable[str]
) -> list[dict[str, Any]]:
    """Principal with its groups, resource with its parents.

    Args:
        groups: those that the policy set puts the principal in; the token's own are added.
    """
    parents = [
        {"type": f"{NAMESPACE}::Group", "id": group}
        for group in sorted({*groups, *principal.groups})
    ]
    found: list[dict[str, Any]] = [
        {
            "uid": principal_uid(principal.id),
            "attrs": {
                "trust_domain": principal.trust_domain,
                "path": principal.path,
                "issuer": principal.issuer,
                "subject": principal.subject,
            },
            "tags": {name: list(values) for name, values in principal.claims},
            "parents": parents,
        },
        *({"uid": group, "attrs": {}, "parents": []} for group in parents),
    ]
    if not resource.project:
        return [*found, {"uid": resource_uid(resource), "attrs": {}, "parents": []}]
    project = {"type": f"{NAMESPACE}::Project", "id": resource.project}
    found.append({"uid": project, "attrs": {}, "parents": []})
    if resource.model is not None:
        found.append(
            {
                "uid": resource_uid(resource),
                "attrs": {"project": resource.project, "model": resource.model},
                "tags": dict(resource.labels),
                "parents": [project],
            }
        )
    return found


def principal_uid(principal_id: str) -> dict[str, str]:
    return {"type": f"{NAMESPACE}::Principal", "id": principal_id}


def resource_uid(resource: Resource) -> dict[str, str]:
    if not resource.project:
        return {"type": f"{NAMESPACE}::Service", "id": SERVICE}
    if resource.model is None:
        return {"type": f"{NAMESPACE}::Project", "id": resource.project}
    return {"type": f"{NAMESPACE}::Model", "id": f"{resource.project}/{resource.model}"}


def _context(principal: Principal, time: datetime, around: Circumstances) -> dict[str, Any]:
    at = minute(time).strftime("%Y-%m-%dT%H:%M:%SZ")
    context: dict[str, Any] = {
        "time": _extension("datetime", at),
        "instance": principal.instance,
        "instance_proven": principal.instance_proven,
        "attributes": _pairs(around.attributes),
    }
    if around.source:
        context["source"] = _extension("ip", str(ipaddress.ip_address(around.source)))
    if around.suite:
        context["suite"] = _suite_name(around.suite)
    if match := _VERSION.fullmatch(around.client_version):
        major, minor, patch = (int(part) for part in match.groups())
        context["client"] = {
            "version": around.client_version,
            "major": major,
            "minor": minor,
            "patch": patch,
        }
    return context


def _extension(function: str, argument: str) -> dict[str, Any]:
    return {"__extn": {"fn": function, "arg": argument}}


def _suite_name(number: int) -> str:
    """`MLKEM768_X25519_HKDF_SHA256_AES256GCM`; an unknown one is refused elsewhere."""
    if number not in KeyTransportSuite.values():
        return "UNKNOWN"
    return KeyTransportSuite.Name(KeyTransportSuite.ValueType(number)).removeprefix(_SUITE_PREFIX)


def _pairs(attributes: Mapping[str, str]) -> list[str]:
    return sorted(f"{key}={value}" for key, value in attributes.items())
