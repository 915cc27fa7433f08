"""Leasing a data key: one round trip for a version and its key, checked in all that is bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from google.protobuf.duration_pb2 import Duration
from modelkms_api import key_transport as layout
from modelkms_api.v1.key_service_pb2 import LeaseDataKeyRequest

from modelkms import catalogue, convert
from modelkms.download import require_pin
from modelkms.errors import AnswerInvalid
from modelkms.key_transport import Binding, boottime_s
from modelkms.secret import SecretBytes
from modelkms.session import Session
from modelkms.types import LeaseInfo, VersionInfo

MAX_OFFLINE_S = 24 * 3600.0
"""Where a service does not say (DESIGN §6)."""
_RENEWED_AT = 2 / 3
"""Of the lease's time (DESIGN §6)."""


def lease_key(session: Session, name: str, attributes: Mapping[str, str] | None) -> LeasedKey:
    """One round trip for version and key."""
    # Counted from before it was sent, so that no clocks need agree: our end of the lease comes no
    # later than the service's.
    sent_s = boottime_s()
    offer = session.keys.offer()
    request = LeaseDataKeyRequest(name=name, attributes=attributes or {}, client_key=offer.message)
    answer = session.call(session.leases.LeaseDataKey, request)

    # What came must be what was asked for, and the key bound to all of it.
    version = catalogue.require_meant(name, convert.version(answer.version))
    lease = convert.lease(answer.lease)
    pin = require_pin(version)
    if lease.version != version.name:
        raise AnswerInvalid("the service leased the key of another version than it answered with")
    binding = Binding(
        purpose=layout.PURPOSE_LEASE,
        principal=session.identity.principal_as_told(lease.principal),
        version_uid=version.uid,
        lease=lease.name,
        pin=layout.pin_bytes(
            length_bytes=pin.length_bytes, floe_header_tag=pin.floe_header_tag, digest=pin.digest
        ),
        lease_duration=answer.lease_duration,
    )
    data_key = offer.open(answer.data_key, binding)
    return LeasedKey(
        version,
        lease,
        data_key,
        sent_s,
        sent_s + _seconds(answer.lease_duration),
        answer.artifact.url,
        _seconds(answer.max_offline) if answer.HasField("max_offline") else MAX_OFFLINE_S,
    )


@dataclass(frozen=True, slots=True)
class LeasedKey:
    """A key and for how long; times in seconds of `boottime_s`.

    Attributes:
        sent_s: when the request was sent that the service answered last.
        link: to the artifact, presigned; empty where the store signs none.
        max_offline_s: how long from then what is open stays open without the service.
    """

    version: VersionInfo
    lease: LeaseInfo
    data_key: SecretBytes
    sent_s: float
    end_s: float
    link: str
    max_offline_s: float = MAX_OFFLINE_S

    @property
    def renew_at_s(self) -> float:
        return self.sent_s + _RENEWED_AT * (self.end_s - self.sent_s)

    def replaced_by(self, later: LeasedKey) -> LeasedKey:
        """The later lease, with the key that is in use; the other copy of it is wiped.

        Raises:
            AnswerInvalid: it is of another artifact.
        """
        later.data_key.wipe()
        if (later.version.uid, later.version.pin) != (self.version.uid, self.version.pin):
            raise AnswerInvalid("the service answered with another version than a moment ago")
        return replace(later, data_key=self.data_key)

    def renewed(self, lease: LeaseInfo, sent_s: float) -> LeasedKey:
        """As `lease` says now. Its times are the service's: their difference needs no clock here.

        Raises:
            AnswerInvalid: it is another lease.
        """
        if lease.name != self.lease.name:
            raise AnswerInvalid("the service renewed another lease than it was asked to")
        if lease.expire_time is None or self.lease.expire_time is None:
            return replace(self, lease=lease)
        longer_s = (lease.expire_time - self.lease.expire_time).total_seconds()
        return replace(self, lease=lease, sent_s=sent_s, end_s=self.end_s + max(longer_s, 0.0))


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
