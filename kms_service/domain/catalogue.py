"""Projects, models, versions and aliases, and the life of a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from kms_service.domain.destruction import Destruction, Moment
from kms_service.domain.errors import (
    ServiceError,
    VersionDestroyed,
    VersionDestroyScheduled,
    VersionDisabled,
    VersionNotFinalized,
    VersionNotPending,
    VersionNotScheduled,
)
from kms_service.domain.names import AliasName, ModelName, ProjectName, VersionName


@dataclass(frozen=True, slots=True)
class Project:
    name: ProjectName
    master_key: str
    """Name of the transit key."""
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Model:
    name: ModelName
    create_time: datetime
    labels: Mapping[str, str] = field(default_factory=dict)


class VersionState(StrEnum):
    PENDING = "PENDING"
    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    DESTROY_SCHEDULED = "DESTROY_SCHEDULED"
    DESTROYED = "DESTROYED"


@dataclass(frozen=True, slots=True)
class ArtifactPin:
    """What identifies a stored artifact (artifact-v1 §6).

    Attributes:
        length_bytes: of the whole file.
        floe_header_tag: 32 bytes.
        digest: 32 bytes; SHA-256 over the SHA-256 digests of the file's 8 MiB pieces.
    """

    length_bytes: int
    floe_header_tag: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class WrappedDataKey:
    """A data key as Vault wrapped it.

    Attributes:
        ciphertext: `vault:v{N}:…`, ASCII.
        master_key_version: N.
    """

    ciphertext: str
    master_key_version: int


NO_DATA_KEY = WrappedDataKey("", 0)
"""What a DESTROYED version has in place of its wrapped data key."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model. `revision` counts its changes, for compare-and-swap."""

    name: VersionName
    uid: str
    state: VersionState
    publisher: str
    request_id: str
    artifact_id: str
    wrapped_key: WrappedDataKey
    create_time: datetime
    finalize_time: datetime | None = None
    pin: ArtifactPin | None = None
    revision: int = 0
    destruction: Destruction | None = None
    """While DESTROY_SCHEDULED, and of one that was destroyed so."""

    def finalize(self, pin: ArtifactPin, now: datetime) -> Version:
        """PENDING → ENABLED, with the pin.

        Raises: as `require_pending`.
        """
        self.require_pending()
        return self._next(VersionState.ENABLED, pin=pin, finalize_time=now)

    def expire(self) -> Version:
        """PENDING → DESTROYED: never finalized in its time; the wrapped data key goes with it.

        Raises: as `require_pending`.
        """
        self.require_pending()
        return replace(self._next(VersionState.DESTROYED), wrapped_key=NO_DATA_KEY)

    def enable(self) -> Version:
        """DISABLED → ENABLED; ENABLED stays.

        Raises:
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed: as the state is.
        """
        if self.state in (VersionState.ENABLED, VersionState.DISABLED):
            return self._next(VersionState.ENABLED)
        raise self._why_not_openable()

    def disable(self) -> Version:
        """ENABLED → DISABLED; DISABLED stays.

        Raises:
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed: as the state is.
        """
        if self.state in (VersionState.ENABLED, VersionState.DISABLED):
            return self._next(VersionState.DISABLED)
        raise self._why_not_openable()

    def schedule_destroy(self, destruction: Destruction) -> Version:
        """ENABLED or DISABLED → DESTROY_SCHEDULED.

        Raises:
            VersionNotFinalized, VersionDestroyScheduled, VersionDestroyed: as the state is.
        """
        if self.state in (VersionState.ENABLED, VersionState.DISABLED):
            return replace(self._next(VersionState.DESTROY_SCHEDULED), destruction=destruction)
        raise self._why_not_openable()

    def confirm_destroy(self, by: str) -> Version:
        """DESTROY_SCHEDULED stays; from now on it is destroyed when it is due.

        Raises:
            VersionNotScheduled, VersionDestroyed: as the state is.
            SecondOfficerRequired, DestroyConfirmed: as `Destruction.confirm`.
        """
        before = self.require_scheduled()
        after = before.confirm(by)
        if after == before:
            return self
        return replace(self, destruction=after, revision=self.revision + 1)

    def restore(self, now: Moment) -> Version:
        """DESTROY_SCHEDULED → DISABLED, until the destruction is due.

        Raises:
            VersionNotScheduled: there is nothing to undo.
            VersionDestroyed: too late: it is done, or is about to be.
        """
        # One that is due may have its tombstone already: what cannot be taken back elsewhere is
        # not taken back here.
        if self.require_scheduled().is_due(now):
            raise VersionDestroyed
        return replace(self._next(VersionState.DISABLED), destruction=None)

    def shred(self, now: Moment) -> Version:
        """DESTROY_SCHEDULED → DESTROYED, once it is due; the wrapped data key goes with it.

        Raises:
            VersionNotScheduled, VersionDestroyed: as the state is.
            VersionDestroyScheduled: not due yet, or not confirmed.
        """
        destruction = self.require_scheduled()
        if not destruction.is_due(now):
            raise VersionDestroyScheduled
        return replace(
            self._next(VersionState.DESTROYED),
            wrapped_key=NO_DATA_KEY,
            destruction=replace(destruction, destroy_time=now.time),
        )

    def require_scheduled(self) -> Destruction:
        """
        Raises:
            VersionNotScheduled, VersionDestroyed: as the state is.
        """
        if self.state is VersionState.DESTROYED:
            raise VersionDestroyed
        if self.state is not VersionState.DESTROY_SCHEDULED or self.destruction is None:
            raise VersionNotScheduled
        return self.destruction

    def require_openable(self) -> ArtifactPin:
        """The pin, if a key may be issued.

        Raises:
            VersionNotFinalized, VersionDisabled, VersionDestroyScheduled, VersionDestroyed.
        """
        if self.state is not VersionState.ENABLED:
            raise self._why_not_openable()
        if self.pin is None:
            raise VersionNotFinalized
        return self.pin

    def require_pending(self) -> None:
        """
        Raises:
            VersionNotPending: the version is finalized.
            VersionDestroyed: it is gone.
        """
        if self.state is VersionState.DESTROYED:
            raise VersionDestroyed
        if self.state is not VersionState.PENDING:
            raise VersionNotPending

    def _why_not_openable(self) -> ServiceError:
        return {
            VersionState.PENDING: VersionNotFinalized,
            VersionState.DISABLED: VersionDisabled,
            VersionState.DESTROY_SCHEDULED: VersionDestroyScheduled,
        }.get(self.state, VersionDestroyed)()

    def _next(
        self,
        state: VersionState,
        *,
        pin: ArtifactPin | None = None,
        finalize_time: datetime | None = None,
    ) -> Version:
        return replace(
            self,
            state=state,
            pin=pin or self.pin,
            finalize_time=finalize_time or self.finalize_time,
            revision=self.revision + (state is not self.state),
        )


@dataclass(frozen=True, slots=True)
class Alias:
    name: AliasName
    number: int
    """Of the version it points to."""
    update_time: datetime

    @property
    def version(self) -> VersionName:
        return VersionName(self.name.project, self.name.model, self.number)
