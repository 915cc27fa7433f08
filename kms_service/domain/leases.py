"""Leases: for how long keys are issued to whom; issuing is bounded, not knowledge (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from kms_service.domain.errors import LeaseExpired, LeaseMaxTtl, LeaseRevoked
from kms_service.domain.names import LeaseName, VersionName


@dataclass(frozen=True, slots=True)
class LeaseBounds:
    """What policy allows.

    Attributes:
        ttl: at once, and when nothing is asked.
        max_ttl: with renewals.
        max_renewals: of one lease; None: as many as `max_ttl` has room for.
        max_live: leases of one model that the principal may hold at once; None: any number.
        one_time: the principal gets one lease of a version, ever.
        max_offline: how long what is open stays open while the service cannot be reached.
    """

    ttl: timedelta
    max_ttl: timedelta
    max_renewals: int | None = None
    max_live: int | None = None
    one_time: bool = False
    max_offline: timedelta = timedelta(hours=24)

    def first(self, asked: timedelta | None) -> timedelta:
        """How long a new lease lasts: what is asked, at most `ttl` and `max_ttl`."""
        return min(asked or self.ttl, self.ttl, self.max_ttl)


class LeaseState(StrEnum):
    LIVE = "LIVE"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class Lease:
    """
    Attributes:
        suite: by which its key travelled, a `KeyTransportSuite` number; 0: not known.
        attributes: claims of the client that asked for it. Renewals are judged by both.
    """

    name: LeaseName
    version: VersionName
    version_uid: str
    principal: str
    instance: str
    issue_time: datetime
    expire_time: datetime
    absolute_end_time: datetime
    renewals: int = 0
    revoke_time: datetime | None = None
    suite: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)

    def state(self, now: datetime) -> LeaseState:
        if self.revoke_time is not None:
            return LeaseState.REVOKED
        return LeaseState.LIVE if now < self.expire_time else LeaseState.EXPIRED

    def renew(self, bounds: LeaseBounds, asked: timedelta | None, now: datetime) -> Lease:
        """The lease, extended from `now`; never past its absolute end, never shortened.

        Raises:
            LeaseRevoked, LeaseExpired: it has ended.
            LeaseMaxTtl: it already lasts to its absolute end, or was renewed as often as it may.
        """
        match self.state(now):
            case LeaseState.REVOKED:
                raise LeaseRevoked
            case LeaseState.EXPIRED:
                raise LeaseExpired
        if self.expire_time >= self.absolute_end_time:
            raise LeaseMaxTtl
        if bounds.max_renewals is not None and self.renewals >= bounds.max_renewals:
            raise LeaseMaxTtl("policy allows no further renewal of this lease; lease anew")
        wanted = min(now + bounds.first(asked), self.absolute_end_time)
        return replace(self, expire_time=max(wanted, self.expire_time), renewals=self.renewals + 1)
