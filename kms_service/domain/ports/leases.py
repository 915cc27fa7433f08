"""The table of leases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from kms_service.domain.leases import Lease
from kms_service.domain.names import LeaseName
from kms_service.domain.ports.catalogue import Page


@dataclass(frozen=True, slots=True)
class LeaseFilter:
    """Which leases; None means any. `live_at` leaves out those ended by then."""

    project: str | None = None
    principal: str | None = None
    instance: str | None = None
    model: str | None = None
    number: int | None = None
    live_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Revoked:
    """A lease that was ended, and the number of what ended it."""

    revocation: int
    lease: LeaseName


class LeaseTable(Protocol):
    def get(self, name: LeaseName) -> Lease | None: ...
    def insert(self, lease: Lease) -> None: ...
    def renew(self, lease: Lease) -> None:
        """Store `expire_time` and `renewals` of a lease whose stored `renewals` is one less.

        Raises:
            ConcurrentUpdate: it was renewed or revoked meanwhile.
        """

    def revoke(self, which: LeaseFilter | LeaseName, now: datetime) -> int:
        """End the matching live leases; how many ended by this call. All get the next revocation
        number."""

    def last_revocation(self) -> int:
        """The highest revocation number given; 0 at first. Numbers commit in their order."""

    def revoked_after(self, revocation: int, limit: int) -> Sequence[Revoked]:
        """At most `limit` leases with a higher revocation number, lowest first; with the last
        number of them, all that have it, `limit` or not."""

    def count(self, which: LeaseFilter) -> int: ...
    def list(self, which: LeaseFilter, page_size: int, page_token: str) -> Page[Lease]:
        """Newest first."""

    def count_live(self, now: datetime) -> int: ...


class EndedLeaseTable(Protocol):
    def list(self, expired_before: datetime, limit: int) -> Sequence[LeaseName]:
        """At most `limit` leases whose time was over before, first those whose was over first; but
        for the last that its principal has had of its version, which is left out."""

    def delete(self, names: Sequence[LeaseName]) -> int:
        """How many of them were there."""
