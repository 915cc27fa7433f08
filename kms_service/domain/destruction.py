"""Destroying a version: scheduled, confirmed by a second officer, undone until it is due, final.

When it is due is measured twice. The logical clock alone would let a wall clock that was set
forward while the service was down shorten the wait (F21, F60): so the wait must also have passed
while the service was running.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from kms_service.domain.errors import (
    DestroyConfirmed,
    InvalidField,
    SecondOfficerRequired,
)

DEFAULT_DESTROY_WAIT = timedelta(days=30)
MIN_DESTROY_WAIT = timedelta(hours=24)
MAX_DESTROY_WAIT = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by both measures.

    Attributes:
        time: logical.
        served: how long the service has been running, in all its life; what it was down counts
            as ten minutes at most.
    """

    time: datetime
    served: timedelta

    def __add__(self, wait: timedelta) -> Moment:
        return Moment(self.time + wait, self.served + wait)

    def reached(self, due: Moment) -> bool:
        """Whether both measures have come to `due`."""
        return self.time >= due.time and self.served >= due.served


@dataclass(frozen=True, slots=True)
class Destruction:
    """What was decided about a version's end.

    Attributes:
        scheduled_by, confirmed_by: SPIFFE IDs of two officers; the second is empty until then.
        due: not before.
        delete_artifact: whether the stored ciphertext goes too.
        destroy_time: when it was done; None before.
    """

    scheduled_by: str
    due: Moment
    delete_artifact: bool
    confirmed_by: str = ""
    destroy_time: datetime | None = None

    def confirm(self, by: str) -> Destruction:
        """Confirmed by `by`; again by the same one changes nothing.

        Raises:
            SecondOfficerRequired: the one who scheduled it.
            DestroyConfirmed: another one confirmed it already.
        """
        if by == self.scheduled_by:
            raise SecondOfficerRequired
        if self.confirmed_by not in ("", by):
            raise DestroyConfirmed
        return replace(self, confirmed_by=by)

    def is_due(self, moment: Moment) -> bool:
        """From here on it cannot be undone."""
        return bool(self.confirmed_by) and moment.reached(self.due)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What stays of a destroyed version outside the database.

    Attributes:
        version: resource name.
        uid: of the version.
        destroy_time: when.
    """

    version: str
    uid: str
    destroy_time: datetime


def check_destroy_wait(wait: timedelta | None) -> timedelta:
    """How long to wait; 30 days if nothing is asked.

    Raises:
        InvalidField: under 24 hours, or over 366 days.
    """
    wait = DEFAULT_DESTROY_WAIT if wait is None else wait
    if not MIN_DESTROY_WAIT <= wait <= MAX_DESTROY_WAIT:
        raise InvalidField("wait", "must be at least 24 hours and at most 366 days")
    return wait
