"""Tables of the catalogue: projects, models, versions, aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from kms_service.domain.catalogue import Alias, Model, Project, Version
from kms_service.domain.destruction import Moment
from kms_service.domain.names import AliasName, ModelName, ProjectName, VersionName

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page (AIP-158). `next_page_token` is empty at the end."""

    items: Sequence[T]
    next_page_token: str


class ProjectTable(Protocol):
    def get(self, name: ProjectName) -> Project | None: ...
    def insert(self, project: Project) -> None:
        """
        Raises:
            ResourceExists: the name is taken.
        """

    def list(self, page_size: int, page_token: str) -> Page[Project]:
        """By name.

        Raises:
            InvalidField: the token is not one of ours.
        """


class ModelTable(Protocol):
    def get(self, name: ModelName) -> Model | None: ...
    def insert(self, model: Model) -> None:
        """
        Raises:
            ResourceExists: the name is taken.
        """

    def list(self, parent: ProjectName, page_size: int, page_token: str) -> Page[Model]: ...


class VersionTable(Protocol):
    def get(self, name: VersionName) -> Version | None: ...
    def get_by_request(self, model: ModelName, publisher: str, request_id: str) -> Version | None:
        """The version that this publisher's request id made in this model (AIP-155)."""

    def next_number(self, model: ModelName) -> int:
        """1 more than the highest number ever given in this model, 1 for the first."""

    def insert(self, version: Version) -> None:
        """
        Raises:
            ConcurrentUpdate: number, uid or request id is taken.
        """

    def update(self, version: Version) -> None:
        """Replace the row whose revision is `version.revision - 1`.

        Raises:
            ConcurrentUpdate: the row has another revision.
        """

    def list(self, parent: ModelName, page_size: int, page_token: str) -> Page[Version]:
        """Newest (highest number) first."""

    def pending_before(self, created_before: datetime, limit: int) -> Sequence[Version]:
        """At most `limit` PENDING versions of any project created before then, oldest first."""

    def never_finalized(self, created_after: datetime, limit: int) -> Sequence[Version]:
        """At most `limit` DESTROYED versions of any project without a pin, oldest first."""

    def using_artifacts(self, artifact_ids: Sequence[str]) -> frozenset[str]:
        """Which of these (at most 500) belong to a version that is not DESTROYED, or one whose
        artifact was to be kept."""

    def scan(self, after: VersionName | None, limit: int) -> Sequence[Version]:
        """At most `limit` versions of all projects behind `after`, by name."""

    def destroy_due(self, moment: Moment, limit: int) -> Sequence[Version]:
        """At most `limit` versions of any project whose destruction is confirmed and due."""

    def count_by_master_key_version(self, project: ProjectName) -> dict[int, int]:
        """How many data keys are wrapped under which master-key version. DESTROYED versions
        have none."""

    def count_under_master_key(self, master_key: str) -> dict[int, int]:
        """The same, of all projects that share a master key; counted one by one, since old
        versions of it are given up on the strength of this."""


class AliasTable(Protocol):
    def get(self, name: AliasName) -> Alias | None: ...
    def put(self, alias: Alias) -> None:
        """Insert or replace."""

    def list(self, parent: ModelName, page_size: int, page_token: str) -> Page[Alias]:
        """By alias id."""

    def of_versions(self, parent: ModelName) -> Mapping[int, tuple[str, ...]]:
        """Sorted alias ids by version number."""
