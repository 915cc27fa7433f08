"""A circuit breaker: while Vault is away, calls fail at once instead of waiting in line."""

from __future__ import annotations

import threading
from collections.abc import Callable

_FAILURES_TO_OPEN = 5
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


class CircuitBreaker:
    """Opens after 5 failures in a row; then lets one call in after each pause (0.5 to 10 s).

    Args:
        monotonic: seconds.
        random: uniform in [0, 1); spreads the trials of many processes.
    """

    def __init__(self, monotonic: Callable[[], float], random: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._random = random
        self._lock = threading.Lock()
        self._failures = 0
        self._next_trial = 0.0

    @property
    def open(self) -> bool:
        return self._failures >= _FAILURES_TO_OPEN

    def may_call(self) -> bool:
        """Whether a call may go out now. Of many that ask after a pause, one may."""
        with self._lock:
            if not self.open:
                return True
            now = self._monotonic()
            if now < self._next_trial:
                return False
            self._next_trial = now + self._pause()
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self.open:
                self._next_trial = self._monotonic() + self._pause()

    def _pause(self) -> float:
        longest = min(
            _LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures - _FAILURES_TO_OPEN, 10)
        )
        return longest * (0.5 + self._random() / 2)
