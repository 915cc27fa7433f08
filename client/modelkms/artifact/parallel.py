"""Work on an artifact by a few threads: a shared counter, and the first failure ends all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

THREADS = 2
"""More bring nothing: copying from and to the kernel is what takes the time (ADR 0007)."""
CHUNK_BYTES = 1 << 20
"""A thread reads, encrypts or decrypts, and writes about so much at once: it stays in the
processor's cache in between."""


class Work:
    """Numbers that threads take from, some at a time and in order, until one of them fails."""

    def __init__(self, numbers: range, each: int = 1) -> None:
        self._numbers = numbers
        self._each = each
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

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
            return taken

    def fail(self, error: BaseException) -> None:
        """The first failure counts; but Ctrl-C and the like go before errors."""
        with self._lock:
            if self._failure is None or not isinstance(error, Exception):
                self._failure = error

    def run(self, task: Callable[[], None], threads: int, name: str) -> None:
        """Run `task` in so many threads, this one included; raise the first failure.

        Args:
            task: takes numbers until there are none.
            name: of the threads.
        """

        def guarded() -> None:
            try:
                task()
            except BaseException as error:
                self.fail(error)

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
