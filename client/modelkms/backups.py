"""The registry of backups: the calls of MasterKeyService that are about it."""

from __future__ import annotations

from collections.abc import Iterable

from modelkms_api.v1 import master_key_service_pb2

from modelkms import convert
from modelkms.catalogue import PAGE_SIZE, all_pages
from modelkms.session import Session
from modelkms.types import BackupInfo


def list_backups(session: Session) -> list[BackupInfo]:
    def page(token: str) -> tuple[Iterable[BackupInfo], str]:
        request = master_key_service_pb2.ListBackupsRequest(page_size=PAGE_SIZE, page_token=token)
        answer = session.call(session.master_keys.ListBackups, request)
        return map(convert.backup, answer.backups), answer.next_page_token

    return all_pages(page)


def declare_destroyed(session: Session, backup: str, reason: str) -> BackupInfo:
    name = backup if "/" in backup else f"backups/{backup}"
    request = master_key_service_pb2.DeclareBackupDestroyedRequest(name=name, reason=reason)
    return convert.backup(session.call(session.master_keys.DeclareBackupDestroyed, request))
