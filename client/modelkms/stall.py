"""Ends a stream that stands still: a deadline alone cannot tell slow from stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STALL_S = 60.0
"""No chunk for so long, and the stream is broken off and taken up again."""


class StallGuard:
    """Calls `cancel` once if `tick` is not called for `stall_s`."""

    def __init__(self, cancel: Callable[[], object], stall_s: float) -> None:
        self._cancel = cancel
        self._stall_s = stall_s
        self._last = time.monotonic()
        self._done = threading.Event()
        self.stalled = False

    def tick(self) -> None:
        self._last = time.monotonic()

    def finish(self) -> None:
        self._done.set()

    def watch(self) -> None:
        while not self._done.wait(min(self._stall_s / 4, 1.0)):
            if time.monotonic() - self._last > self._stall_s:
                self.stalled = True
                self._cancel()
                return


@contextmanager
def guarded(cancel: Callable[[], object], stall_s: float = STALL_S) -> Iterator[StallGuard]:
    """Watch a stream while it is read or written."""
    guard = StallGuard(cancel, stall_s)
    watcher = threading.Thread(target=guard.watch, name="modelkms-stall-guard", daemon=True)
    watcher.start()
    try:
        yield guard
    finally:
        guard.finish()
        watcher.join()
