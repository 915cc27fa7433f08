"""Work on an artifact by a few threads: a shared counter, and the first failure ends all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

THREADS = 2
"""More bring nothing: copying from and to the kernel is what takes the time (ADR 0007)."""
CHUNK_BYTES = 1 << 20
"""A thread reads, encrypts or decrypts, and writes about so much at once: it stays in the
processor's cache in between."""

ProgressBytes = Callable[[int, int], None]
"""(plaintext bytes done, of how many)."""


class Work:
    """Numbers that threads take from, some at a time and in order, until one of them fails.

    If several fail, the failure at the lowest number is the one that is raised: those before it
    were all taken, and came out well.
    """

    def __init__(self, numbers: range, each: int = 1) -> None:
        self._numbers = numbers
        self._each = each
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._failed_at = -1
        self._current = threading.local()

    @property
    def failed(self) -> bool:
        """Whether a thread failed: the others should end."""
        return self._failure is not None

    def take(self) -> range | None:
        """The next numbers; None when there are no more, or a thread failed."""
        with self._lock:
            if self._failure is not None or not self._numbers:
                return None
            taken = self._numbers[: self._each]
            self._numbers = self._numbers[self._each :]
            self._current.number = taken[0]
            return taken

    def run(self, task: Callable[[], None], threads: int, name: str) -> None:
        """Run `task` in so many threads, this one included; raise what failed.

        Args:
            task: takes numbers until there are none.
            name: of the threads.
        """

        def guarded() -> None:
            try:
                task()
            except BaseException as error:
                self._fail(error)

        helpers = [threading.Thread(target=guarded, name=name) for _ in range(threads - 1)]
        for helper in helpers:
            helper.start()
        try:
            guarded()
        finally:
            for helper in helpers:
                helper.join()
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        # Ctrl-C and the like go before errors.
        at = getattr(self._current, "number", -1) if isinstance(error, Exception) else -1
        with self._lock:
            if self._failure is None or at < self._failed_at:
                self._failure, self._failed_at = error, at
