"""Who gets nothing, whatever policy says: blocked principals and frozen projects.

Both are durable and read in the transaction that commits a lease, never cached: so they hold on
every replica from the next lease on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kms_service.domain.names import ProjectName


@dataclass(frozen=True, slots=True)
class Block:
    """A principal that sees what a stranger sees, under whatever certificate or token.

    Attributes:
        principal: as it is authenticated.
        reason: of the officer's, for the officers.
        blocked_by: principal of the officer.
        until: when it ends by itself; None: when it is taken off.
    """

    principal: str
    reason: str
    blocked_by: str
    create_time: datetime
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Freeze:
    """A project of which no data key is issued.

    Attributes:
        reason: of the officer's, for the officers.
        frozen_by: principal of the officer.
    """

    project: ProjectName
    reason: str
    frozen_by: str
    create_time: datetime
