"""How long an opened model may be used: its lease renewed, replaced, ended when it must end.

While the service cannot be reached, what is open stays open, for as long as policy says
(`max_offline`), and a warning says until when. A lease that the service ends, ends here at once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from modelkms import catalogue
from modelkms.errors import (
    IdentityError,
    LeaseExpired,
    LeaseMaxTtl,
    LeaseRevoked,
    ModelKmsError,
    NotFoundError,
    UnavailableError,
)
from modelkms.key_transport import boottime_s
from modelkms.leasing import LeasedKey, lease_key
from modelkms.session import Session
from modelkms.types import LeaseEvent

_log = logging.getLogger("modelkms")

LeaseCallback = Callable[[LeaseEvent], None]
"""Told in a thread of the SDK's; what it raises is logged."""

_JITTER = 0.1
"""Of a lease's time: renewed that much earlier at most, so that a fleet that started together does
not renew together."""
_ANEW_BEFORE_END = 0.1
"""Of a lease's time: one that cannot be renewed any more is replaced this long before its end."""
_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 60.0


class Tenure:
    """How long one opened model may be used. Its model locks, but to read `leased`.

    Args:
        leased: as it was issued.
        attributes: with which it was asked for, and will be again.
        notify: told what happens.
        random: uniform in [0, 1).
    """

    def __init__(
        self,
        session: Session,
        leased: LeasedKey,
        attributes: Mapping[str, str] | None,
        notify: LeaseCallback,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._attributes = attributes
        self._notify = notify
        self._random = random
        self._failures = 0
        self.leased = leased
        self.due_s = self._renewal_s()

    @property
    def offline(self) -> bool:
        """Whether the service could not be reached the last time."""
        return self._failures > 0

    @property
    def offline_until_s(self) -> float:
        """How long it lasts if the service is not heard of again."""
        return max(self.leased.end_s, self.leased.sent_s + self.leased.max_offline_s)

    def renew(self, ttl: timedelta | None = None) -> None:
        """Extend the lease.

        Raises:
            LeaseExpired, LeaseRevoked, LeaseMaxTtl, and outages.
        """
        sent_s = boottime_s()
        lease = catalogue.renew_lease(self._session, self.leased.lease.name, ttl)
        self.leased = self.leased.renewed(lease, sent_s)
        self._in_touch("renewed")

    def tend(self) -> ModelKmsError | None:
        """What is due now; sets `due_s`. Why the tenure has ended, if it has."""
        try:
            if boottime_s() >= self.leased.end_s:
                self._lease_anew()
            else:
                self._renew_or_wait()
        except (LeaseRevoked, LeaseExpired) as error:
            return error
        except NotFoundError as error:
            # Policy lets us in no more, or we are blocked: told as a stranger is.
            return LeaseRevoked(
                f"the lease of {self._reference} was ended ({error.reason})",
                metadata=error.metadata,
            )
        except (UnavailableError, IdentityError) as error:
            return self._offline(error)
        except ModelKmsError as error:
            return LeaseExpired(
                f"the lease of {self._reference} ends: it could not be had anew ({error.reason})"
            )
        return None

    def revoked(self) -> LeaseRevoked:
        return LeaseRevoked(f"the lease of {self._reference} was ended by the service")

    def _renew_or_wait(self) -> None:
        try:
            self.renew()
        except LeaseMaxTtl:
            leased = self.leased
            anew_s = leased.end_s - _ANEW_BEFORE_END * (leased.end_s - leased.sent_s)
            if boottime_s() >= anew_s:
                self._lease_anew()
            else:
                self.due_s = anew_s
        except LeaseExpired:  # its clock says so, ours does not yet
            self._lease_anew()

    def _lease_anew(self) -> None:
        name = self.leased.version.name
        self.leased = self.leased.replaced_by(lease_key(self._session, name, self._attributes))
        self._in_touch("replaced")

    def _in_touch(self, kind: str) -> None:
        was_offline, self._failures = self._failures > 0, 0
        self.due_s = self._renewal_s()
        if was_offline:
            _log.warning("the service is back: the lease of %s is %s", self._reference, kind)
        self._tell("online" if was_offline else kind)

    def _offline(self, error: ModelKmsError) -> ModelKmsError | None:
        now_s, until_s = boottime_s(), self.offline_until_s
        if now_s >= until_s:
            return LeaseExpired(
                f"the lease of {self._reference} has ended, and the service could not be reached "
                f"for as long as policy allows ({error.reason})"
            )
        if not self._failures:
            until = _moment(until_s - now_s)
            _log.warning(
                "the lease of %s was not renewed (%s): what is open stays open until %s",
                self._reference,
                error.reason,
                until.isoformat(timespec="seconds"),
            )
            self._tell("offline", error, until)
        pause_s = min(_FIRST_RETRY_S * 2.0 ** min(self._failures, 10), _LONGEST_RETRY_S)
        self._failures += 1
        self.due_s = min(now_s + pause_s * (0.5 + self._random() / 2), until_s)
        return None

    def _renewal_s(self) -> float:
        leased = self.leased
        return leased.renew_at_s - _JITTER * self._random() * (leased.end_s - leased.sent_s)

    @property
    def _reference(self) -> str:
        return self.leased.version.reference

    def _tell(
        self, kind: str, error: ModelKmsError | None = None, until: datetime | None = None
    ) -> None:
        self._notify(LeaseEvent(kind, self._reference, self.leased.lease.name, error, until))


def _moment(in_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=in_s)
