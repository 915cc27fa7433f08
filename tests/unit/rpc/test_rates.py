"""Token buckets: how often one identity may call, and when it may again (F29)."""

from __future__ import annotations

import pytest

from kms_service.domain.errors import QuotaExceeded
from kms_service.domain.identity import principal_of
from kms_service.rpc import rates
from kms_service.rpc.error_table import to_grpc_status
from kms_service.rpc.rates import Rates, TokenBuckets


class ManualSeconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> ManualSeconds:
    return ManualSeconds()


def taken(buckets: TokenBuckets, key: str, most: int = 1000) -> int:
    for count in range(most):
        try:
            buckets.take(key)
        except QuotaExceeded:
            return count
    return most


def test_f29_a_bucket_holds_two_seconds_and_refills(seconds: ManualSeconds) -> None:
    buckets = TokenBuckets(10, seconds)
    assert taken(buckets, "a") == 20
    assert taken(buckets, "b") == 20
    seconds.now += 0.5
    assert taken(buckets, "a") == 5
    seconds.now += 3600
    assert taken(buckets, "a") == 20


def test_f29_it_tells_when_to_come_back(seconds: ManualSeconds) -> None:
    buckets = TokenBuckets(0.25, seconds)
    buckets.take("a")
    with pytest.raises(QuotaExceeded) as caught:
        buckets.take("a")
    assert caught.value.retry_after_s == 4.0
    assert "RetryInfo" in str(to_grpc_status(caught.value).trailing_metadata[0][1])
    seconds.now += 4.0
    buckets.take("a")


def test_f29_one_instance_that_floods_leaves_its_fleet_room(seconds: ManualSeconds) -> None:
    limits = Rates(100, 10, seconds)
    flooding = principal_of("spiffe://test.example/a", "1" * 64)
    for _ in range(1000):
        try:
            limits.take(flooding)
        except QuotaExceeded:
            continue
    for number in range(2, 20):
        limits.take(principal_of("spiffe://test.example/a", f"{number:064x}"))


def test_without_limits_nothing_is_refused(seconds: ManualSeconds) -> None:
    limits = Rates(None, None, seconds)
    for _ in range(10_000):
        limits.take(principal_of("spiffe://test.example/a"))


def test_f32_buckets_are_bounded(seconds: ManualSeconds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_BUCKETS", 10)
    buckets = TokenBuckets(1, seconds)
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._buckets) == 10
