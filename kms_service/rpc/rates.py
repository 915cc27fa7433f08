"""How often one identity may call: a token bucket for each principal and each instance (F29)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kms_service.domain.errors import QuotaExceeded
from kms_service.domain.identity import Principal

_BURST_S = 2.0
"""A bucket holds what flows in in this time."""
_BUCKETS = 16_384
"""At most; the one not asked for longest goes, and comes back full."""


@dataclass(slots=True)
class _Bucket:
    calls: float
    seen_s: float


class TokenBuckets:
    """Buckets by key. Safe to use from many threads.

    Args:
        rate: calls a second for each key, in the long run.
        monotonic: seconds.
    """

    def __init__(self, rate: float, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._most = max(1.0, rate * _BURST_S)
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> None:
        """
        Raises:
            QuotaExceeded: the bucket is empty; tells when it is not.
        """
        with self._lock:
            now = self._monotonic()
            bucket = self._buckets.pop(key, None) or _Bucket(self._most, now)
            self._buckets[key] = bucket
            if len(self._buckets) > _BUCKETS:
                self._buckets.popitem(last=False)
            bucket.calls = min(self._most, bucket.calls + (now - bucket.seen_s) * self._rate)
            bucket.seen_s = now
            if bucket.calls < 1:
                raise QuotaExceeded(retry_after_s=(1 - bucket.calls) / self._rate)
            bucket.calls -= 1


class Rates:
    """What each call takes from.

    Args:
        of_principal, of_instance: calls a second; None: any number.
    """

    def __init__(
        self,
        of_principal: float | None,
        of_instance: float | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._of_principal = TokenBuckets(of_principal, monotonic) if of_principal else None
        self._of_instance = TokenBuckets(of_instance, monotonic) if of_instance else None

    def take(self, principal: Principal) -> None:
        """
        Raises:
            QuotaExceeded.
        """
        # The narrower first: one instance that floods does not empty its fleet's bucket.
        if self._of_instance is not None:
            self._of_instance.take(f"{principal.instance} {principal.id}")
        if self._of_principal is not None:
            self._of_principal.take(principal.id)
