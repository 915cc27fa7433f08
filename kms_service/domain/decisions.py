"""Authorisation: what is asked of policy, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from kms_service.domain.identity import Principal
from kms_service.domain.leases import LeaseBounds


class Action(StrEnum):
    """What can be permitted; named as the API's verbs (Cedar entity `Action::"…"`)."""

    CREATE_PROJECT = "CreateProject"
    GET_PROJECT = "GetProject"
    CREATE_MODEL = "CreateModel"
    GET_MODEL = "GetModel"
    CREATE_VERSION = "CreateVersion"
    """Also covers uploading and finalizing one's own version."""
    GET_VERSION = "GetVersion"
    ENABLE_VERSION = "EnableVersion"
    DISABLE_VERSION = "DisableVersion"
    SET_ALIAS = "SetAlias"
    RESOLVE_MODEL = "ResolveModel"
    """Also covers reading the artifact's ciphertext."""
    LEASE_DATA_KEY = "LeaseDataKey"
    REVOKE_LEASES = "RevokeLeases"
    LIST_LEASES = "ListLeases"
    GET_MASTER_KEY = "GetMasterKey"


@dataclass(frozen=True, slots=True)
class Resource:
    """What is acted on: a project, or a model within it (Cedar `Model in Project`).

    Attributes:
        project: id.
        model: id, or None for the project itself.
        labels: the model's, if it exists.
    """

    project: str
    model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccessRequest:
    principal: Principal
    action: Action
    resource: Resource
    time: datetime
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Targeting attributes the client claims; never identity."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy said.

    Attributes:
        id: 32 hexadecimal digits; told to a refused caller, found again in the audit log.
        permitted: True only after an explicit permit without any evaluation error.
        policies: ids of the policies that decided, sorted.
        lease_bounds: for LEASE_DATA_KEY.
    """

    id: str
    permitted: bool
    policies: tuple[str, ...]
    lease_bounds: LeaseBounds
