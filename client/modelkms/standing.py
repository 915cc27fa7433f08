"""Blocked principals and frozen projects: the calls of AccessService."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from modelkms_api.v1 import access_service_pb2

from modelkms import convert
from modelkms.catalogue import PAGE_SIZE, all_pages
from modelkms.session import Session
from modelkms.types import BlockInfo, FreezeInfo


def block(session: Session, principal: str, reason: str, until: datetime | None) -> int:
    """How many live leases of the principal have ended by it."""
    until_time = Timestamp()
    if until is not None:
        until_time.FromDatetime(until)
    request = access_service_pb2.BlockPrincipalRequest(
        principal=principal, reason=reason, until_time=until_time if until else None
    )
    return session.call(session.access.BlockPrincipal, request).revoked


def unblock(session: Session, principal: str) -> bool:
    """Whether it was blocked."""
    request = access_service_pb2.UnblockPrincipalRequest(principal=principal)
    return session.call(session.access.UnblockPrincipal, request).was_blocked


def list_blocks(session: Session) -> list[BlockInfo]:
    def page(token: str) -> tuple[Iterable[BlockInfo], str]:
        request = access_service_pb2.ListBlocksRequest(page_size=PAGE_SIZE, page_token=token)
        answer = session.call(session.access.ListBlocks, request)
        return map(convert.block, answer.blocks), answer.next_page_token

    return all_pages(page)


def freeze(session: Session, name: str, reason: str) -> int:
    """How many live leases of the project have ended by it."""
    request = access_service_pb2.FreezeProjectRequest(name=name, reason=reason)
    return session.call(session.access.FreezeProject, request).revoked


def unfreeze(session: Session, name: str) -> bool:
    """Whether it was frozen."""
    request = access_service_pb2.UnfreezeProjectRequest(name=name)
    return session.call(session.access.UnfreezeProject, request).was_frozen


def list_freezes(session: Session) -> list[FreezeInfo]:
    def page(token: str) -> tuple[Iterable[FreezeInfo], str]:
        request = access_service_pb2.ListFreezesRequest(page_size=PAGE_SIZE, page_token=token)
        answer = session.call(session.access.ListFreezes, request)
        return map(convert.freeze, answer.freezes), answer.next_page_token

    return all_pages(page)
