"""Recorded decisions, and last uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from modelkms_api.encoding import length_prefixed
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from kms_service.adapters.database import schema
from kms_service.adapters.database.times import from_us, to_us
from kms_service.domain.decisions import (
    AccessRequest,
    Action,
    Circumstances,
    RecordedDecision,
    Resource,
)
from kms_service.domain.identity import Principal

_DECISIONS = schema.decisions
_USES = schema.access_uses


class SqlDecisionTable:
    """Implements `domain.ports.DecisionTable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def record(self, decisions: Sequence[RecordedDecision]) -> None:
        if not decisions:
            return
        # What a lost reply to COMMIT left behind is not an error: the same records come again.
        ids = [decision.id for decision in decisions]
        self._connection.execute(delete(_DECISIONS).where(_DECISIONS.c.id.in_(ids)))
        self._connection.execute(insert(_DECISIONS), [_values(each) for each in decisions])
        self._note_uses(decisions)

    def get(self, decision_id: str) -> RecordedDecision | None:
        query = select(_DECISIONS).where(_DECISIONS.c.id == decision_id)
        row = self._connection.execute(query).one_or_none()
        return _decision(row) if row is not None else None

    def newest(self, limit: int) -> Sequence[RecordedDecision]:
        query = (
            select(_DECISIONS)
            .order_by(_DECISIONS.c.time_us.desc(), _DECISIONS.c.id.desc())
            .limit(limit)
        )
        return [_decision(row) for row in self._connection.execute(query)]

    def principals(self) -> Mapping[str, tuple[Principal, datetime]]:
        query = select(_USES.c.description, _USES.c.last_time_us).order_by(_USES.c.last_time_us)
        found = {}
        for row in self._connection.execute(query):
            principal = _principal(json.loads(row.description))
            found[principal.id] = principal, from_us(row.last_time_us)
        return found

    def last_uses(self, action: Action, resource: Resource) -> Mapping[str, datetime]:
        wanted = [
            _USES.c.action == action.value,
            _USES.c.project == resource.project,
            _USES.c.last_permit_us.is_not(None),
        ]
        if resource.model is not None:
            wanted.append(_USES.c.model == resource.model)
        query = (
            select(_USES.c.principal, func.max(_USES.c.last_permit_us).label("last_us"))
            .where(*wanted)
            .group_by(_USES.c.principal)
        )
        return {row.principal: from_us(row.last_us) for row in self._connection.execute(query)}

    def prune(self, decisions: int, uses: int) -> None:
        for table, time, keep in (
            (_DECISIONS, _DECISIONS.c.time_us, decisions),
            (_USES, _USES.c.last_time_us, uses),
        ):
            newest_too_old = select(time).order_by(time.desc()).offset(keep).limit(1)
            edge = self._connection.execute(newest_too_old).scalar_one_or_none()
            if edge is not None:
                self._connection.execute(delete(table).where(time <= edge))

    def _note_uses(self, decisions: Sequence[RecordedDecision]) -> None:
        uses: dict[str, dict[str, object]] = {}
        for decision in decisions:
            use = _use(decision)
            before = uses.get(str(use["key"]), use)
            use["last_permit_us"] = use["last_permit_us"] or before["last_permit_us"]
            uses[str(use["key"])] = use
        known = select(_USES.c.key, _USES.c.last_permit_us).where(_USES.c.key.in_(list(uses)))
        for row in self._connection.execute(known).all():
            use = uses.pop(row.key)
            use["last_permit_us"] = use["last_permit_us"] or row.last_permit_us
            self._connection.execute(update(_USES).where(_USES.c.key == row.key).values(**use))
        if uses:
            self._connection.execute(insert(_USES), list(uses.values()))


def _use(decision: RecordedDecision) -> dict[str, object]:
    request, resource = decision.request, decision.request.resource
    parts = (request.principal.id, request.action.value, resource.project, resource.model or "")
    at = to_us(request.time)
    principal, action, project, model = parts
    return {
        "key": hashlib.sha256(length_prefixed(*(part.encode() for part in parts))).hexdigest(),
        "principal": principal,
        "action": action,
        "project": project,
        "model": model,
        "description": json.dumps(_principal_json(request.principal)),
        "last_time_us": at,
        "last_permit_us": at if decision.permitted else None,
    }


def _values(decision: RecordedDecision) -> dict[str, object]:
    return {
        "id": decision.id,
        "time_us": to_us(decision.request.time),
        "permitted": decision.permitted,
        "request": json.dumps(_request_json(decision.request)),
        "policies": json.dumps(decision.policies),
        "epoch": decision.epoch,
        "repeats": decision.repeats,
        "redacted": decision.redacted,
    }


def _decision(row: Row[tuple[object, ...]]) -> RecordedDecision:
    return RecordedDecision(
        id=row.id,
        request=_request(json.loads(row.request), from_us(row.time_us)),
        permitted=bool(row.permitted),
        policies=tuple(json.loads(row.policies)),
        epoch=row.epoch,
        repeats=row.repeats,
        redacted=bool(row.redacted),
    )


def _request_json(request: AccessRequest) -> dict[str, Any]:
    resource, around = request.resource, request.circumstances
    return {
        "principal": _principal_json(request.principal),
        "action": request.action.value,
        "project": resource.project,
        "model": resource.model,
        "labels": dict(resource.labels),
        "source": around.source,
        "suite": around.suite,
        "client_version": around.client_version,
        "attributes": dict(around.attributes),
    }


def _request(document: dict[str, Any], time: datetime) -> AccessRequest:
    return AccessRequest(
        principal=_principal(document["principal"]),
        action=Action(document["action"]),
        resource=Resource(document["project"], document["model"], document["labels"]),
        time=time,
        circumstances=Circumstances(
            source=document["source"],
            suite=document["suite"],
            client_version=document["client_version"],
            attributes=document["attributes"],
        ),
    )


def _principal_json(principal: Principal) -> dict[str, Any]:
    return {
        "id": principal.id,
        "trust_domain": principal.trust_domain,
        "path": principal.path,
        "instance": principal.instance,
        "issuer": principal.issuer,
        "subject": principal.subject,
        "groups": list(principal.groups),
        "claims": [[name, list(values)] for name, values in principal.claims],
        "instance_proven": principal.instance_proven,
    }


def _principal(document: dict[str, Any]) -> Principal:
    claims = tuple((name, tuple(values)) for name, values in document["claims"])
    return Principal(**{**document, "groups": tuple(document["groups"]), "claims": claims})
