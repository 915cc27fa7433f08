"""Rewrapping: data keys move under a newer version of their master key, without being seen.

What is left to do is told by the rows themselves (those under an older version), so nothing is
lost when a worker dies: an operation only remembers how far it looked, and who works on what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import RewrapEnded
from kms_service.domain.names import RewrapName, VersionName


class RewrapState(StrEnum):
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"
    """Everything was tried; what failed is named."""


@dataclass(frozen=True, slots=True)
class Rewrap:
    """One operation.

    Attributes:
        master_key: name of the transit key.
        target_version: data keys under an older version than this are rewrapped.
        started_by: SPIFFE ID, or `modelkms-server` itself.
        keys_per_second: of all replicas together, at most; 0: as fast as they can.
        total: data keys under older versions at the start.
        rewrapped, failed: of them.
    """

    name: RewrapName
    state: RewrapState
    master_key: str
    target_version: int
    started_by: str
    keys_per_second: int
    total: int
    rewrapped: int
    failed: int
    create_time: datetime
    update_time: datetime
    finish_time: datetime | None = None

    @property
    def done(self) -> bool:
        return self.state is RewrapState.DONE

    @property
    def left(self) -> int:
        return 0 if self.done else max(0, self.total - self.rewrapped - self.failed)

    def pause(self, now: datetime) -> Rewrap:
        """RUNNING → PAUSED; PAUSED stays.

        Raises:
            RewrapEnded: it is done.
        """
        return self._to(RewrapState.PAUSED, now)

    def resume(self, now: datetime) -> Rewrap:
        """PAUSED → RUNNING; RUNNING stays.

        Raises:
            RewrapEnded: it is done; start another for what failed.
        """
        return self._to(RewrapState.RUNNING, now)

    def _to(self, state: RewrapState, now: datetime) -> Rewrap:
        if self.done:
            raise RewrapEnded
        return self if state is self.state else replace(self, state=state, update_time=now)


@dataclass(frozen=True, slots=True)
class RewrapItem:
    """A data key to be rewrapped, as it was when it was looked at."""

    version: VersionName
    uid: str
    wrapped_key: WrappedDataKey


@dataclass(frozen=True, slots=True)
class RewrapBatch:
    """Data keys that one worker has claimed for a while.

    Attributes:
        claim: 32 hexadecimal digits.
    """

    rewrap: Rewrap
    claim: str
    items: Sequence[RewrapItem]


@dataclass(frozen=True, slots=True)
class Rewrapped:
    item: RewrapItem
    wrapped_key: WrappedDataKey


@dataclass(frozen=True, slots=True)
class RewrapFailure:
    """A data key that could not be rewrapped. `reason` is that of a declared error."""

    version: VersionName
    reason: str


@dataclass(frozen=True, slots=True)
class NothingYet:
    """No batch now: others work on the last ones, or the rate is reached."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class Finished:
    """This call ended the operation."""

    rewrap: Rewrap
