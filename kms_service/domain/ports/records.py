"""Tables of what was decided, and of the audit chains' heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from kms_service.domain.audit import ChainHead
from kms_service.domain.decisions import Action, RecordedDecision, Resource
from kms_service.domain.identity import Principal


class DecisionTable(Protocol):
    """The newest decisions, and when which principal was last seen doing what."""

    def record(self, decisions: Sequence[RecordedDecision]) -> None: ...

    def get(self, decision_id: str) -> RecordedDecision | None: ...

    def newest(self, limit: int) -> Sequence[RecordedDecision]:
        """Newest first."""

    def principals(self) -> Mapping[str, tuple[Principal, datetime]]:
        """Each that ever called, as it was when last seen, by id."""

    def last_uses(self, action: Action, resource: Resource) -> Mapping[str, datetime]:
        """When each principal was last permitted this; a project holds its models."""

    def prune(self, decisions: int, uses: int) -> None:
        """Keep only so many of the newest decisions and of the latest uses."""


class AuditHeadTable(Protocol):
    """Where each process's audit chain stands, so that a checkpoint by one lists all."""

    def put(self, head: ChainHead) -> None:
        """Insert or replace."""

    def list(self) -> Sequence[ChainHead]:
        """By chain."""
