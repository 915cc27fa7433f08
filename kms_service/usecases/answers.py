"""What the use cases answer: domain objects, completed for the one who asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from kms_service.domain.catalogue import Version
from kms_service.domain.leases import Lease, LeaseState
from kms_service.domain.names import ProjectName, VersionName
from kms_service.domain.ports import EncryptedDataKey, MasterKeyState


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version, and the aliases that point to it (sorted ids)."""

    version: Version
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArtifactLocation:
    """Where to read an artifact. `url` is empty where the store cannot sign links: then it is
    read through the service."""

    url: str = ""
    url_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    version: VersionView
    artifact: ArtifactLocation


@dataclass(frozen=True, slots=True)
class CreatedVersion:
    """A PENDING version, and its data key for the publisher."""

    version: VersionView
    data_key: EncryptedDataKey


@dataclass(frozen=True, slots=True)
class FinalizedVersion:
    version: VersionView
    stable_version: VersionName


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A lease, and its state as of the answer."""

    lease: Lease
    state: LeaseState


@dataclass(frozen=True, slots=True)
class LeasedDataKey:
    """A data key on its way. `lease_duration` is bound into `data_key`, in whole milliseconds,
    and counts from when the request was sent."""

    lease: LeaseView
    version: VersionView
    artifact: ArtifactLocation
    data_key: EncryptedDataKey
    lease_duration: timedelta
    max_offline: timedelta
    """As `LeaseBounds` has it."""


@dataclass(frozen=True, slots=True)
class MasterKeyView:
    """State of a project's master key, and how many data keys are under which of its versions."""

    project: ProjectName
    state: MasterKeyState
    keys_under_version: Mapping[int, int]
