"""F21: logical time, whatever the wall clock does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kms_service.adapters.clock import LogicalClock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Marks:
    def __init__(self) -> None:
        self.mark: datetime | None = None

    def clock_mark(self) -> datetime | None:
        return self.mark

    def store_clock_mark(self, mark: datetime) -> datetime:
        self.mark = mark if self.mark is None else max(self.mark, mark)
        return self.mark


class Machine:
    """A wall clock that anybody may set, and a boot-time clock that nobody can."""

    def __init__(self) -> None:
        self.wall = NOON
        self.boottime_s = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.boottime_s += seconds

    def start(self, marks: Marks) -> LogicalClock:
        return LogicalClock(marks, wall=lambda: self.wall, boottime=lambda: self.boottime_s)


def test_f21_a_wall_clock_set_while_running_changes_nothing() -> None:
    machine = Machine()
    clock = machine.start(Marks())
    for jump in (-HOUR, 2 * HOUR):
        machine.wall += jump
        machine.pass_by(10)
    assert clock.now() == NOON + timedelta(seconds=20)


def test_f21_sleep_counts() -> None:
    machine = Machine()
    clock = machine.start(Marks())
    machine.pass_by(8 * 3600)  # CLOCK_BOOTTIME goes on in suspend, CLOCK_MONOTONIC does not
    assert clock.now() == NOON + 8 * HOUR


def test_f21_what_expired_stays_expired_when_restarted_an_hour_back() -> None:
    machine, marks = Machine(), Marks()
    clock = machine.start(marks)
    machine.pass_by(600)
    expired_at = clock.now()
    clock.store_mark()
    machine.wall -= HOUR
    clock = machine.start(marks)
    assert clock.now() == expired_at
    machine.pass_by(5)
    assert clock.now() == expired_at + timedelta(seconds=5)


def test_f21_a_start_an_hour_ahead_ends_early_and_never_goes_back() -> None:
    machine, marks = Machine(), Marks()
    machine.wall += HOUR
    ahead = machine.start(marks)
    assert ahead.now() == NOON + HOUR
    ahead.store_mark()
    machine.wall -= HOUR
    assert machine.start(marks).now() == NOON + HOUR


def test_the_real_clocks_run() -> None:
    clock = LogicalClock(Marks())
    first = clock.now()
    assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
    assert clock.now() >= first
