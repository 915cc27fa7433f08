"""Tables of what holds until somebody changes it: blocks, freezes, backups, trims."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from kms_service.domain.backups import Backup
from kms_service.domain.names import ProjectName
from kms_service.domain.ports.catalogue import Page
from kms_service.domain.standing import Block, Freeze
from kms_service.domain.trims import Trim


class BlockTable(Protocol):
    def get(self, principal: str) -> Block | None:
        """Also one that has ended."""

    def put(self, block: Block) -> None:
        """Insert or replace."""

    def delete(self, principal: str) -> bool:
        """Whether it was there."""

    def list(self, now: datetime, page_size: int, page_token: str) -> Page[Block]:
        """Those that hold, by principal."""


class FreezeTable(Protocol):
    def get(self, name: ProjectName) -> Freeze | None: ...
    def put(self, freeze: Freeze) -> None:
        """Insert or replace."""

    def delete(self, name: ProjectName) -> bool:
        """Whether it was there."""

    def list(self, page_size: int, page_token: str) -> Page[Freeze]:
        """By project."""


class BackupTable(Protocol):
    def get(self, backup_id: str) -> Backup | None: ...
    def put(self, backup: Backup) -> None:
        """Insert or replace."""

    def list(self, page_size: int, page_token: str) -> Page[Backup]:
        """Newest first."""

    def not_destroyed(self) -> Sequence[Backup]:
        """All that nobody declared destroyed, oldest first."""


class TrimTable(Protocol):
    def get(self, master_key: str) -> Trim | None:
        """Also one that cannot be confirmed any more."""

    def put(self, trim: Trim) -> None:
        """Insert or replace."""
