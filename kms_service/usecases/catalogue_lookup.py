"""Finding what a name means, in one transaction and without judging it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kms_service.domain.catalogue import Alias, Model, Project, Version
from kms_service.domain.names import (
    AliasName,
    LeaseName,
    ModelName,
    ProjectName,
    ServiceName,
    VersionName,
)
from kms_service.domain.ports import Transaction
from kms_service.usecases.answers import VersionView


@dataclass(frozen=True, slots=True)
class Found:
    """What is there; each None if it is not."""

    project: Project | None = None
    model: Model | None = None
    alias: Alias | None = None
    version: Version | None = None
    aliases: tuple[str, ...] = ()
    """Sorted ids of those that point to `version`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The model's; empty without one."""


Name = ServiceName | ProjectName | ModelName | VersionName | AliasName | LeaseName


def labels_of(tx: Transaction, name: Name) -> Mapping[str, str]:
    """Labels of the model behind `name`; empty without one."""
    if isinstance(name, ServiceName | ProjectName | LeaseName):
        return {}
    model = tx.models.get(_model_of(name))
    return model.labels if model else {}


def look_up(tx: Transaction, name: Name) -> Found:
    """Project, model, alias and version behind `name`; of a lease, its project only."""
    return tx.once(("found", name), lambda: _look_up(tx, name))


def _look_up(tx: Transaction, name: Name) -> Found:
    if isinstance(name, ServiceName):
        return Found()
    project = tx.projects.get(ProjectName(name.project))
    if isinstance(name, ProjectName | LeaseName):
        return Found(project=project)
    model = tx.models.get(_model_of(name))
    alias = tx.aliases.get(name) if isinstance(name, AliasName) else None
    match name:
        case VersionName():
            version = tx.versions.get(name)
        case AliasName() if alias is not None:
            version = tx.versions.get(alias.version)
        case _:
            version = None
    return Found(
        project=project,
        model=model,
        alias=alias,
        version=version,
        aliases=aliases_of(tx, version.name) if version else (),
        labels=model.labels if model else {},
    )


def aliases_of(tx: Transaction, version: VersionName) -> tuple[str, ...]:
    """Sorted ids of the aliases that point to `version`."""
    return tx.aliases.of_versions(version.parent).get(version.number, ())


def view(tx: Transaction, version: Version) -> VersionView:
    """`version` with its aliases, as they stand in this transaction."""
    return VersionView(version, aliases_of(tx, version.name))


def _model_of(name: ModelName | AliasName | VersionName) -> ModelName:
    return name if isinstance(name, ModelName) else name.parent
