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
    REKEY_VERSION = "RekeyVersion"
    """Finalizing a version as another's successor: that one is disabled, its aliases move."""
    DESTROY_VERSION = "DestroyVersion"
    """Also covers undoing it, until it is due."""
    CONFIRM_DESTROY_VERSION = "ConfirmDestroyVersion"
    SET_ALIAS = "SetAlias"
    RESOLVE_MODEL = "ResolveModel"
    """Also covers reading the artifact's ciphertext."""
    LEASE_DATA_KEY = "LeaseDataKey"
    REVOKE_LEASES = "RevokeLeases"
    LIST_LEASES = "ListLeases"
    GET_MASTER_KEY = "GetMasterKey"
    """Also covers looking at rewraps."""
    REWRAP_DATA_KEYS = "RewrapDataKeys"
    """Also covers pausing and resuming."""
    REQUEST_TRIM = "RequestTrim"
    CONFIRM_TRIM = "ConfirmTrim"
    GET_POLICY_SET = "GetPolicySet"
    EXPLAIN_ACCESS = "ExplainAccess"
    WHO_CAN = "WhoCan"
    DRY_RUN_POLICY_SET = "DryRunPolicySet"
    BLOCK_PRINCIPAL = "BlockPrincipal"
    UNBLOCK_PRINCIPAL = "UnblockPrincipal"
    LIST_BLOCKS = "ListBlocks"
    FREEZE_PROJECT = "FreezeProject"
    UNFREEZE_PROJECT = "UnfreezeProject"
    LIST_FREEZES = "ListFreezes"
    LIST_BACKUPS = "ListBackups"
    DECLARE_BACKUP_DESTROYED = "DeclareBackupDestroyed"


@dataclass(frozen=True, slots=True)
class Resource:
    """What is acted on: a project, a model within it (Cedar `Model in Project`), or the service.

    Attributes:
        project: id; empty for the service itself.
        model: id, or None for the project itself.
        labels: the model's, if it exists.
    """

    project: str
    model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Under which a call is made.

    Attributes:
        source: IP address of the caller; empty if it is not known.
        suite: how a key is to travel, a `KeyTransportSuite` number; 0 where none is asked for.
        client_version: see `Caller`.
        attributes: targeting attributes the client claims; never identity.
    """

    source: str = ""
    suite: int = 0
    client_version: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccessRequest:
    principal: Principal
    action: Action
    resource: Resource
    time: datetime
    circumstances: Circumstances = Circumstances()


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy said.

    Attributes:
        id: 32 hexadecimal digits; told to a refused caller, found again in the audit log.
        permitted: True only after an explicit permit without any evaluation error.
        policies: ids of the policies that decided, sorted.
        lease_bounds: for LEASE_DATA_KEY.
        epoch: of the policy set that decided: SHA-256 of all its files, hexadecimal.
    """

    id: str
    permitted: bool
    policies: tuple[str, ...]
    lease_bounds: LeaseBounds
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision, with what it takes to take it again.

    Attributes:
        request: as it was decided, but for values that were redacted.
        repeats: how many equal requests this record stands for, within a few seconds.
        redacted: whether a value of the request was replaced.
    """

    id: str
    request: AccessRequest
    permitted: bool
    policies: tuple[str, ...]
    epoch: str
    repeats: int = 1
    redacted: bool = False
