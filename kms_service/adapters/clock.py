"""Logical time (DESIGN §6 "time"): what expired stays expired, whatever the wall clock does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol


def boottime_s() -> float:
    """Seconds that nobody can set, and that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class MarkStore(Protocol):
    """Where the high-water mark outlives the process."""

    def clock_mark(self) -> datetime | None: ...
    def store_clock_mark(self, mark: datetime) -> datetime:
        """Store it, unless a higher one is there; the higher one."""


class LogicalClock:
    """now = max(stored mark, wall clock at start) + boot-time clock elapsed since.

    CLOCK_BOOTTIME goes on while the machine sleeps and nobody can set it. A wall clock that was
    wrong at start makes everything end early at worst; it is right again at the next start.

    Replicas go by the database's wall clock instead of their machines', and by each other's marks:
    none is behind another by more than the time between two marks, whatever their machines say.

    Args:
        marks: asked once, here; told by `store_mark`.
        wall: aware UTC.
        boottime: seconds.
    """

    def __init__(
        self,
        marks: MarkStore,
        *,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        boottime: Callable[[], float] = boottime_s,
    ) -> None:
        self._marks = marks
        self._boottime = boottime
        stored, wall_now = marks.clock_mark(), wall()
        self._start = wall_now if stored is None else max(stored, wall_now)
        self._boottime_at_start = boottime()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._boottime() - self._boottime_at_start)

    def store_mark(self) -> None:
        """Store now as the mark, and go on from another's that is ahead of it. Call it every few
        seconds and at stop.

        Raises:
            StateUnavailable, StateCorrupt.
        """
        ahead = self._marks.store_clock_mark(self.now()) - self.now()
        if ahead > timedelta(0):
            self._start += ahead
