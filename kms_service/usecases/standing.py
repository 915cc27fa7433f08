"""Blocking principals and freezing projects: what stops issuing at once.

Each change and the leases it ends are one transaction, recorded before it commits.
"""

from __future__ import annotations

from datetime import datetime

from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField, ProjectFrozen
from kms_service.domain.identity import Caller
from kms_service.domain.names import SERVICE, ProjectName
from kms_service.domain.ports import Clock, Database, LeaseFilter, Page, Transaction
from kms_service.domain.standing import Block, Freeze
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.paging import check_page_size

_PRINCIPAL_SCHEMES = ("spiffe://", "oidc:")


class Standing:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def block(
        self, caller: Caller, principal: str, reason: str, until: datetime | None
    ) -> tuple[Block, int]:
        """The block, and how many live leases of the principal it ended, of all projects. One
        that is there already is replaced.

        Raises:
            InvalidField: `principal` is none, or the caller; `until` is not in the future.
            ModelNotFoundOrDenied: not permitted.
        """
        _check_principal(principal)
        if principal == caller.principal.id:
            raise InvalidField("principal", "is yourself: have another officer do it")
        now = self._clock.now()
        if until is not None and until <= now:
            raise InvalidField("until_time", "must be in the future")
        block = Block(principal, reason, caller.principal.id, now, until)
        with self._gate.admit(caller, Action.BLOCK_PRINCIPAL, SERVICE) as permit:

            def put(tx: Transaction) -> int:
                tx.blocks.put(block)
                revoked = tx.leases.revoke(LeaseFilter(principal=principal), now)
                permit.record(
                    of_principal=principal,
                    why=reason,
                    until=until.isoformat() if until else "",
                    leases_revoked=revoked,
                )
                return revoked

            return block, self._database.transact(put)

    def unblock(self, caller: Caller, principal: str) -> bool:
        """Whether there was a block. Leases that it ended stay ended.

        Raises:
            InvalidField: `principal` is none.
            ModelNotFoundOrDenied: not permitted.
        """
        _check_principal(principal)
        with self._gate.admit(caller, Action.UNBLOCK_PRINCIPAL, SERVICE) as permit:

            def take_off(tx: Transaction) -> bool:
                was_blocked = tx.blocks.delete(principal)
                permit.record(of_principal=principal, was_blocked="yes" if was_blocked else "no")
                return was_blocked

            return self._database.transact(take_off)

    def list_blocks(self, caller: Caller, page_size: int, page_token: str) -> Page[Block]:
        """Those in force, by principal.

        Raises:
            InvalidField: `page_size` or `page_token`.
            ModelNotFoundOrDenied: not permitted.
        """
        size = check_page_size(page_size)
        with self._gate.admit(caller, Action.LIST_BLOCKS, SERVICE) as permit:
            with self._database.read() as tx:
                page = tx.blocks.list(self._clock.now(), size, page_token)
            permit.record(items=len(page.items))
            return page

    def freeze(self, caller: Caller, name: ProjectName, reason: str) -> tuple[Freeze, int]:
        """The freeze, and how many live leases of the project it ended. One that is there
        already is replaced.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        with self._gate.admit(caller, Action.FREEZE_PROJECT, name) as permit:
            permit.require(permit.found.project)
            freeze = Freeze(name, reason, caller.principal.id, self._clock.now())

            def put(tx: Transaction) -> int:
                tx.freezes.put(freeze)
                revoked = tx.leases.revoke(LeaseFilter(name.project), freeze.create_time)
                permit.record(why=reason, leases_revoked=revoked)
                return revoked

            return freeze, self._database.transact(put)

    def unfreeze(self, caller: Caller, name: ProjectName) -> bool:
        """Whether it was frozen. Leases that the freeze ended stay ended.

        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        with self._gate.admit(caller, Action.UNFREEZE_PROJECT, name) as permit:
            permit.require(permit.found.project)

            def take_off(tx: Transaction) -> bool:
                was_frozen = tx.freezes.delete(name)
                permit.record(was_frozen="yes" if was_frozen else "no")
                return was_frozen

            return self._database.transact(take_off)

    def list_freezes(self, caller: Caller, page_size: int, page_token: str) -> Page[Freeze]:
        """By project.

        Raises:
            InvalidField: `page_size` or `page_token`.
            ModelNotFoundOrDenied: not permitted.
        """
        size = check_page_size(page_size)
        with self._gate.admit(caller, Action.LIST_FREEZES, SERVICE) as permit:
            with self._database.read() as tx:
                page = tx.freezes.list(size, page_token)
            permit.record(items=len(page.items))
            return page


def require_not_frozen(tx: Transaction, name: ProjectName) -> None:
    """Asked in the transaction on whose strength a key is issued. After a permit.

    Raises:
        ProjectFrozen.
    """
    if tx.freezes.get(name) is not None:
        raise ProjectFrozen


def _check_principal(principal: str) -> None:
    """A block under a mistyped name would block nobody, and say that it does."""
    if not principal.startswith(_PRINCIPAL_SCHEMES):
        raise InvalidField("principal", "must be a SPIFFE ID, or oidc:{issuer}:{subject}")
