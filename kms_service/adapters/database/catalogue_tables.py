"""Projects, models and aliases."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import Connection, Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from kms_service.adapters.database import schema
from kms_service.adapters.database.pages import decode_token, encode_token, page_of
from kms_service.adapters.database.prepared import Prepared
from kms_service.adapters.database.seen import look_once
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.catalogue import Alias, Model, Project
from kms_service.domain.errors import ResourceExists
from kms_service.domain.names import AliasName, ModelName, ProjectName
from kms_service.domain.ports import Page

# Of every lease (see `prepared`).
_PROJECT = Prepared(
    select(schema.projects).where(schema.projects.c.project == bindparam("project"))
)
_MODEL = Prepared(
    select(schema.models).where(
        schema.models.c.project == bindparam("project"),
        schema.models.c.model == bindparam("model"),
    )
)
_ALIAS = Prepared(
    select(schema.aliases).where(
        schema.aliases.c.project == bindparam("project"),
        schema.aliases.c.model == bindparam("model"),
        schema.aliases.c.alias == bindparam("alias"),
    )
)
_ALIASES_OF_MODEL = Prepared(
    select(schema.aliases.c.number, schema.aliases.c.alias)
    .where(
        schema.aliases.c.project == bindparam("project"),
        schema.aliases.c.model == bindparam("model"),
    )
    .order_by(schema.aliases.c.alias)
)


class SqlProjectTable:
    """Implements `domain.ports.ProjectTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: ProjectName) -> Project | None:
        return look_once(self._connection, name, lambda: self._look(name))

    def _look(self, name: ProjectName) -> Project | None:
        row = _PROJECT.one(self._connection, {"project": name.project})
        return _project(row) if row is not None else None

    def insert(self, project: Project) -> None:
        try:
            self._connection.execute(
                insert(schema.projects).values(
                    project=project.name.project,
                    master_key=project.master_key,
                    create_time_us=to_us(project.create_time),
                )
            )
        except IntegrityError as error:
            raise ResourceExists from error

    def list(self, page_size: int, page_token: str) -> Page[Project]:
        table = schema.projects
        query = select(table).order_by(table.c.project).limit(page_size + 1)
        if (after := decode_token(page_token, str)) is not None:
            query = query.where(table.c.project > after[0])
        items = [_project(row) for row in self._connection.execute(query)]
        return page_of(items, page_size, lambda project: encode_token(project.name.project))


class SqlModelTable:
    """Implements `domain.ports.ModelTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: ModelName) -> Model | None:
        return look_once(self._connection, name, lambda: self._look(name))

    def _look(self, name: ModelName) -> Model | None:
        wanted = {"project": name.project, "model": name.model}
        row = _MODEL.one(self._connection, wanted)
        return _model(row) if row is not None else None

    def insert(self, model: Model) -> None:
        try:
            self._connection.execute(
                insert(schema.models).values(
                    project=model.name.project,
                    model=model.name.model,
                    create_time_us=to_us(model.create_time),
                    labels=json.dumps(dict(model.labels), sort_keys=True),
                    last_number=0,
                )
            )
        except IntegrityError as error:
            raise ResourceExists from error

    def list(self, parent: ProjectName, page_size: int, page_token: str) -> Page[Model]:
        table = schema.models
        query = (
            select(table)
            .where(table.c.project == parent.project)
            .order_by(table.c.model)
            .limit(page_size + 1)
        )
        if (after := decode_token(page_token, str)) is not None:
            query = query.where(table.c.model > after[0])
        items = [_model(row) for row in self._connection.execute(query)]
        return page_of(items, page_size, lambda model: encode_token(model.name.model))


class SqlAliasTable:
    """Implements `domain.ports.AliasTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: AliasName) -> Alias | None:
        return look_once(self._connection, name, lambda: self._look(name))

    def _look(self, name: AliasName) -> Alias | None:
        wanted = {"project": name.project, "model": name.model, "alias": name.alias}
        row = _ALIAS.one(self._connection, wanted)
        return _alias(row) if row is not None else None

    def put(self, alias: Alias) -> None:
        table, name = schema.aliases, alias.name
        values = {"number": alias.number, "update_time_us": to_us(alias.update_time)}
        moved = self._connection.execute(
            update(table)
            .where(
                table.c.project == name.project,
                table.c.model == name.model,
                table.c.alias == name.alias,
            )
            .values(values)
        )
        if moved.rowcount == 0:
            self._connection.execute(
                insert(table).values(
                    project=name.project, model=name.model, alias=name.alias, **values
                )
            )

    def list(self, parent: ModelName, page_size: int, page_token: str) -> Page[Alias]:
        table = schema.aliases
        query = (
            select(table)
            .where(table.c.project == parent.project, table.c.model == parent.model)
            .order_by(table.c.alias)
            .limit(page_size + 1)
        )
        if (after := decode_token(page_token, str)) is not None:
            query = query.where(table.c.alias > after[0])
        items = [_alias(row) for row in self._connection.execute(query)]
        return page_of(items, page_size, lambda alias: encode_token(alias.name.alias))

    def of_versions(self, parent: ModelName) -> Mapping[int, tuple[str, ...]]:
        key = ("aliases", parent)
        return look_once(self._connection, key, lambda: self._look_of_versions(parent))

    def _look_of_versions(self, parent: ModelName) -> Mapping[int, tuple[str, ...]]:
        wanted = {"project": parent.project, "model": parent.model}
        found: dict[int, tuple[str, ...]] = {}
        for number, alias in _ALIASES_OF_MODEL.all(self._connection, wanted):
            found[number] = (*found.get(number, ()), alias)
        return found


def _project(row: Row[tuple[object, ...]]) -> Project:
    return Project(ProjectName(row.project), row.master_key, from_us(row.create_time_us))


def _model(row: Row[tuple[object, ...]]) -> Model:
    return Model(
        ModelName(row.project, row.model), from_us(row.create_time_us), json.loads(row.labels)
    )


def _alias(row: Row[tuple[object, ...]]) -> Alias:
    return Alias(
        AliasName(row.project, row.model, row.alias), row.number, from_us(row.update_time_us)
    )
