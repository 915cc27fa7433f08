"""Leases: bounded, never revived, never past their absolute end."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_service.domain.errors import LeaseExpired, LeaseMaxTtl, LeaseRevoked, ServiceError
from kms_service.domain.leases import Lease, LeaseBounds, LeaseState
from kms_service.domain.names import LeaseName, VersionName

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
BOUNDS = LeaseBounds(ttl=HOUR, max_ttl=12 * HOUR)
LEASE = Lease(
    name=LeaseName("p", "0" * 32),
    version=VersionName("p", "m", 1),
    version_uid="1" * 32,
    principal="spiffe://demo.example/reader",
    instance="2" * 64,
    issue_time=NOW,
    expire_time=NOW + HOUR,
    absolute_end_time=NOW + 12 * HOUR,
)
TICK = timedelta(microseconds=1)


def test_a_first_lease_is_what_is_asked_within_bounds() -> None:
    assert BOUNDS.first(None) == HOUR
    assert BOUNDS.first(HOUR / 2) == HOUR / 2
    assert BOUNDS.first(2 * HOUR) == HOUR
    assert LeaseBounds(2 * HOUR, HOUR).first(None) == HOUR


def test_the_state_at_the_boundaries() -> None:
    assert LEASE.state(NOW + HOUR - TICK) is LeaseState.LIVE
    assert LEASE.state(NOW + HOUR) is LeaseState.EXPIRED
    assert replace(LEASE, revoke_time=NOW).state(NOW + 2 * HOUR) is LeaseState.REVOKED


def test_f20_renewal_extends_from_now_and_counts() -> None:
    renewed = LEASE.renew(BOUNDS, None, NOW + HOUR / 2)
    assert renewed.expire_time == NOW + HOUR * 3 / 2
    assert renewed.renewals == 1
    assert renewed.absolute_end_time == LEASE.absolute_end_time


def test_f20_renewal_after_expiry_is_refused() -> None:
    LEASE.renew(BOUNDS, None, NOW + HOUR - TICK)
    with pytest.raises(LeaseExpired):
        LEASE.renew(BOUNDS, None, NOW + HOUR)


def test_f20_renewal_of_a_revoked_lease_is_refused_even_after_its_end() -> None:
    for later in (timedelta(0), 2 * HOUR):
        with pytest.raises(LeaseRevoked):
            replace(LEASE, revoke_time=NOW).renew(BOUNDS, None, NOW + later)


def test_f20_renewal_stops_at_the_absolute_end() -> None:
    late = replace(LEASE, expire_time=NOW + 12 * HOUR - TICK)
    assert late.renew(BOUNDS, None, NOW + 11.5 * HOUR).expire_time == NOW + 12 * HOUR
    with pytest.raises(LeaseMaxTtl):
        replace(LEASE, expire_time=NOW + 12 * HOUR).renew(BOUNDS, None, NOW + 11.5 * HOUR)


def test_renewal_never_shortens() -> None:
    assert LEASE.renew(BOUNDS, HOUR / 60, NOW).expire_time == LEASE.expire_time


SPANS = st.timedeltas(timedelta(milliseconds=1), timedelta(days=2))


@given(
    st.lists(st.tuples(SPANS, SPANS, SPANS, st.none() | SPANS), max_size=20),
)
def test_f20_f21_no_renewal_revives_shortens_or_outlives(
    steps: list[tuple[timedelta, timedelta, timedelta, timedelta | None]],
) -> None:
    lease, now, ended = LEASE, NOW, False
    for waited, ttl, max_ttl, asked in steps:
        now += waited
        ended = ended or lease.state(now) is not LeaseState.LIVE
        try:
            renewed = lease.renew(LeaseBounds(ttl, max_ttl), asked, now)
        except ServiceError:
            continue
        assert not ended
        assert lease.expire_time <= renewed.expire_time <= lease.absolute_end_time
        assert renewed.expire_time <= max(lease.expire_time, now + ttl)
        lease = renewed
