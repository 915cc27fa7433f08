"""From what was looked up to a version that can be opened, and where its artifact is."""

from __future__ import annotations

from datetime import timedelta

from kms_service.domain.catalogue import ArtifactPin, Project, Version
from kms_service.domain.errors import NoStableVersion
from kms_service.domain.names import AliasName, Reference
from kms_service.domain.ports import ArtifactStore, Clock
from kms_service.usecases.answers import ArtifactLocation
from kms_service.usecases.authorisation import Permit

LINK_VALID_FOR = timedelta(hours=24)
"""A link gives ciphertext only; it may outlive a lease."""


def resolve(permit: Permit, reference: Reference) -> tuple[Project, Version]:
    """Project and version that the reference means. Only after a permit.

    Raises:
        ModelNotFoundOrDenied: no such project, model or version.
        NoStableVersion: the model has no such alias.
    """
    found = permit.found
    project = permit.require(found.project)
    permit.require(found.model)
    if isinstance(reference, AliasName) and found.alias is None:
        raise NoStableVersion(alias=reference.alias)
    version = permit.require(found.version)
    permit.note(version=version.name, version_uid=version.uid)
    return project, version


def resolve_openable(permit: Permit, reference: Reference) -> tuple[Project, Version, ArtifactPin]:
    """As `resolve`; with the pin, since the version can be opened.

    Raises:
        VersionNotFinalized, VersionDisabled, VersionDestroyScheduled, VersionDestroyed.
    """
    project, version = resolve(permit, reference)
    return project, version, version.require_openable()


def locate(store: ArtifactStore, clock: Clock, version: Version) -> ArtifactLocation:
    """A presigned link, or nothing where the store cannot sign.

    Raises:
        StorageUnavailable.
    """
    # The clock is read first: a link told to end too early is no harm.
    expire_time = clock.now() + LINK_VALID_FOR
    url = store.link(version.artifact_id, LINK_VALID_FOR)
    return ArtifactLocation(url, expire_time) if url else ArtifactLocation()
