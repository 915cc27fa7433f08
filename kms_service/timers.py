"""Work that is done every few seconds, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kms_service.domain.errors import ServiceError
from kms_service.telemetry.logging import get_logger

_log = get_logger(__name__)


class Timer:
    """Calls `work` at once and then `every_s` seconds after each end of it, until stopped.

    What `work` raises is logged, and it is tried again the next time.
    """

    def __init__(self, name: str, every_s: float, work: Callable[[], object]) -> None:
        self._name = name
        self._every_s = every_s
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"timer-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stopping(self) -> bool:
        """For work that takes long: whether it should end."""
        return self._stop.is_set()

    def stop(self, wait_s: float) -> None:
        """No further calls; waits for a running one. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._work()
            except ServiceError as error:
                _log.warning("timer_failed", timer=self._name, reason=error.reason)
            except Exception:
                _log.exception("timer_failed", timer=self._name)
            self._stop.wait(self._every_s)
