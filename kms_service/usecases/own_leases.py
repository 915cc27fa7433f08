"""Whether a holder's own leases are still live. Tells nothing of anybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from kms_service.domain.identity import Principal
from kms_service.domain.leases import LeaseState
from kms_service.domain.names import LeaseName
from kms_service.domain.ports import Clock, Database


class OwnLeases:
    """Asked often and by everybody, changes nothing and gives nothing away: so it is neither
    decided by policy nor recorded."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def ended(self, principal: Principal, names: Iterable[LeaseName]) -> list[LeaseName]:
        """Those of `names` that are not live leases of this principal and instance: ended, never
        there, or another's, all told alike. Of a blocked principal, all.

        Raises:
            StateUnavailable, StateCorrupt.
        """
        with self._database.read() as tx:
            now = self._clock.now()
            block = tx.blocks.get(principal.id)
            if block is not None and block.holds(now):
                return list(names)
            ended = []
            for name in names:
                lease = tx.leases.get(name)
                holder = (principal.id, principal.instance)
                if (
                    lease is None
                    or (lease.principal, lease.instance) != holder
                    or lease.state(now) is not LeaseState.LIVE
                ):
                    ended.append(name)
            return ended
