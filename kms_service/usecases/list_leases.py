"""Who holds keys of what."""

from __future__ import annotations

from dataclasses import replace

from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.ports import Clock, Database, Page
from kms_service.usecases.answers import LeaseView
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.paging import check_page_size
from kms_service.usecases.revoke_leases import lease_filter, require_scope


class ListLeases:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def __call__(
        self,
        caller: Caller,
        parent: ProjectName,
        page_size: int,
        page_token: str,
        *,
        principal: str | None = None,
        model: ModelName | VersionName | None = None,
        show_ended: bool = False,
    ) -> Page[LeaseView]:
        """The project's leases that match, newest first, each with its state as of now.

        Raises:
            InvalidField: `page_size` or `page_token`, or `model` is another project's.
            ModelNotFoundOrDenied: missing, or not permitted on the model (the project, if none
                is given).
        """
        size = check_page_size(page_size)
        which = lease_filter(parent, principal=principal, model=model)
        with self._gate.admit(caller, Action.LIST_LEASES, model or parent) as permit:
            require_scope(permit, model)
            now = self._clock.now()
            with self._database.read() as tx:
                page = tx.leases.list(
                    which if show_ended else replace(which, live_at=now), size, page_token
                )
            permit.record(items=len(page.items))
            return Page(
                [LeaseView(lease, lease.state(now)) for lease in page.items], page.next_page_token
            )
