"""Times as the tables store them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(time: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The aware UTC time."""
    return _EPOCH + timedelta(microseconds=microseconds)


def duration_us(duration: timedelta) -> int:
    """Whole microseconds."""
    return duration // _MICROSECOND
