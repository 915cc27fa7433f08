"""Versions of models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from kms_service.adapters.database import key_counts, schema
from kms_service.adapters.database.pages import decode_token, encode_token, page_of
from kms_service.adapters.database.prepared import Prepared
from kms_service.adapters.database.seen import look_once
from kms_service.adapters.database.times import duration_us, from_us, to_us
from kms_service.domain.catalogue import (
    NO_DATA_KEY,
    ArtifactPin,
    Version,
    VersionState,
    WrappedDataKey,
)
from kms_service.domain.destruction import Destruction, Moment
from kms_service.domain.errors import ConcurrentUpdate
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.ports import Page

_TABLE = schema.versions
_LAST_NUMBER = 2**31 - 1  # of the column
_DESTRUCTION = (
    "destroy_scheduled_by",
    "destroy_confirmed_by",
    "destroy_due_us",
    "destroy_due_served_us",
    "destroy_artifact",
    "destroy_time_us",
)

_GET = Prepared(
    select(_TABLE).where(
        _TABLE.c.project == bindparam("project"),
        _TABLE.c.model == bindparam("model"),
        _TABLE.c.number == bindparam("number"),
    )
)
"""Of every lease (see `prepared`)."""


class SqlVersionTable:
    """Implements `domain.ports.VersionTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: VersionName) -> Version | None:
        return look_once(self._connection, name, lambda: self._look(name))

    def _look(self, name: VersionName) -> Version | None:
        wanted = {"project": name.project, "model": name.model, "number": name.number}
        row = _GET.one(self._connection, wanted)
        return _version(row) if row is not None else None

    def get_by_request(self, model: ModelName, publisher: str, request_id: str) -> Version | None:
        return self._one(
            _TABLE.c.project == model.project,
            _TABLE.c.model == model.model,
            _TABLE.c.publisher == publisher,
            _TABLE.c.request_id == request_id,
        )

    def next_number(self, model: ModelName) -> int:
        """Counted up in the model's row: a number is never given twice, even if rows vanish."""
        models = schema.models
        number = self._connection.execute(
            update(models)
            .where(models.c.project == model.project, models.c.model == model.model)
            .values(last_number=models.c.last_number + 1)
            .returning(models.c.last_number)
        ).scalar_one()
        return int(number)

    def insert(self, version: Version) -> None:
        try:
            self._connection.execute(insert(_TABLE).values(version_columns(version)))
        except IntegrityError as error:
            raise ConcurrentUpdate from error

    def update(self, version: Version) -> None:
        changed = self._connection.execute(
            update(_TABLE)
            .where(
                _TABLE.c.project == version.name.project,
                _TABLE.c.model == version.name.model,
                _TABLE.c.number == version.name.number,
                _TABLE.c.revision == version.revision - 1,
            )
            .values(version_columns(version))
        )
        if changed.rowcount != 1:
            raise ConcurrentUpdate

    def list(self, parent: ModelName, page_size: int, page_token: str) -> Page[Version]:
        query = (
            select(_TABLE)
            .where(_TABLE.c.project == parent.project, _TABLE.c.model == parent.model)
            .order_by(_TABLE.c.number.desc())
            .limit(page_size + 1)
        )
        if (after := decode_token(page_token, int)) is not None:
            query = query.where(_TABLE.c.number < min(int(after[0]), _LAST_NUMBER))
        items = [_version(row) for row in self._connection.execute(query)]
        return page_of(items, page_size, lambda version: encode_token(version.name.number))

    def pending_before(self, created_before: datetime, limit: int) -> Sequence[Version]:
        rows = self._connection.execute(
            select(_TABLE)
            .where(
                _TABLE.c.state == VersionState.PENDING.value,
                _TABLE.c.create_time_us < to_us(created_before),
            )
            .order_by(_TABLE.c.create_time_us)
            .limit(limit)
        )
        return [_version(row) for row in rows]

    def never_finalized(self, created_after: datetime, limit: int) -> Sequence[Version]:
        rows = self._connection.execute(
            select(_TABLE)
            .where(
                _TABLE.c.state == VersionState.DESTROYED.value,
                _TABLE.c.create_time_us > to_us(created_after),
                _TABLE.c.pin_length_bytes.is_(None),
            )
            .order_by(_TABLE.c.create_time_us)
            .limit(limit)
        )
        return [_version(row) for row in rows]

    def using_artifacts(self, artifact_ids: Sequence[str]) -> frozenset[str]:
        rows = self._connection.execute(
            select(_TABLE.c.artifact_id).where(
                _TABLE.c.artifact_id.in_(artifact_ids),
                or_(
                    _TABLE.c.state != VersionState.DESTROYED.value,
                    _TABLE.c.destroy_artifact.is_(False),
                ),
            )
        )
        return frozenset(row[0] for row in rows)

    def scan(self, after: VersionName | None, limit: int) -> Sequence[Version]:
        name = (_TABLE.c.project, _TABLE.c.model, _TABLE.c.number)
        query = select(_TABLE).order_by(*name).limit(limit)
        if after is not None:
            query = query.where(tuple_(*name) > (after.project, after.model, after.number))
        return [_version(row) for row in self._connection.execute(query)]

    def destroy_due(self, moment: Moment, limit: int) -> Sequence[Version]:
        rows = self._connection.execute(
            select(_TABLE)
            .where(
                _TABLE.c.state == VersionState.DESTROY_SCHEDULED.value,
                _TABLE.c.destroy_confirmed_by.is_not(None),
                _TABLE.c.destroy_due_us <= to_us(moment.time),
                _TABLE.c.destroy_due_served_us <= duration_us(moment.served),
            )
            .limit(limit)
        )
        return [_version(row) for row in rows]

    def count_by_master_key_version(self, project: ProjectName) -> dict[int, int]:
        return key_counts.counts_of_project(self._connection, project)

    def count_under_master_key(self, master_key: str) -> dict[int, int]:
        projects = schema.projects
        rows = self._connection.execute(
            select(_TABLE.c.master_key_version, func.count())
            .join(projects, projects.c.project == _TABLE.c.project)
            .where(
                projects.c.master_key == master_key,
                _TABLE.c.master_key_version > NO_DATA_KEY.master_key_version,
            )
            .group_by(_TABLE.c.master_key_version)
        )
        return {int(version): int(keys) for version, keys in rows}

    def _one(self, *conditions: Any) -> Version | None:
        row = self._connection.execute(select(_TABLE).where(*conditions)).one_or_none()
        return _version(row) if row is not None else None


def version_columns(version: Version) -> dict[str, object]:
    pin = version.pin
    return {
        "project": version.name.project,
        "model": version.name.model,
        "number": version.name.number,
        "uid": version.uid,
        "state": version.state.value,
        "publisher": version.publisher,
        "request_id": version.request_id,
        "artifact_id": version.artifact_id,
        "wrapped_key": version.wrapped_key.ciphertext,
        "master_key_version": version.wrapped_key.master_key_version,
        "create_time_us": to_us(version.create_time),
        "finalize_time_us": to_us(version.finalize_time) if version.finalize_time else None,
        "pin_length_bytes": pin.length_bytes if pin else None,
        "pin_floe_header_tag": pin.floe_header_tag if pin else None,
        "pin_digest": pin.digest if pin else None,
        "revision": version.revision,
        **_destruction_columns(version.destruction),
    }


def _destruction_columns(destruction: Destruction | None) -> dict[str, object]:
    if destruction is None:
        return dict.fromkeys(_DESTRUCTION)
    done = destruction.destroy_time
    values = (
        destruction.scheduled_by,
        destruction.confirmed_by or None,
        to_us(destruction.due.time),
        duration_us(destruction.due.served),
        destruction.delete_artifact,
        to_us(done) if done is not None else None,
    )
    return dict(zip(_DESTRUCTION, values, strict=True))


def _version(row: Row[tuple[object, ...]]) -> Version:
    pinned = row.pin_length_bytes is not None
    return Version(
        name=VersionName(row.project, row.model, row.number),
        uid=row.uid,
        state=VersionState(row.state),
        publisher=row.publisher,
        request_id=row.request_id,
        artifact_id=row.artifact_id,
        wrapped_key=WrappedDataKey(row.wrapped_key, row.master_key_version),
        create_time=from_us(row.create_time_us),
        finalize_time=from_us(row.finalize_time_us) if row.finalize_time_us is not None else None,
        pin=ArtifactPin(row.pin_length_bytes, row.pin_floe_header_tag, row.pin_digest)
        if pinned
        else None,
        revision=row.revision,
        destruction=_destruction(row),
    )


def _destruction(row: Row[tuple[object, ...]]) -> Destruction | None:
    if row.destroy_scheduled_by is None:
        return None
    done_us = row.destroy_time_us
    return Destruction(
        scheduled_by=row.destroy_scheduled_by,
        due=Moment(from_us(row.destroy_due_us), timedelta(microseconds=row.destroy_due_served_us)),
        delete_artifact=bool(row.destroy_artifact),
        confirmed_by=row.destroy_confirmed_by or "",
        destroy_time=from_us(done_us) if done_us is not None else None,
    )
