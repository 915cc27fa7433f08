"""Which of the shipped checkpoints prove the log of a time: one comes every minute."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from kms_service.domain.audit import checkpoint_name
from kms_service.domain.ports import CheckpointPlace

_AROUND = timedelta(days=7)
"""Further from the ends of the time none is looked for."""


def telling(place: CheckpointPlace, since: datetime, until: datetime) -> dict[str, bytes]:
    """For each chain the last checkpoint before the time, the last in it and the first after it:
    where the time begins, and where it ends. Each vouches for all other chains as well.

    Returns:
        Notes by name, not verified.

    Raises:
        StorageUnavailable.
    """
    start, end = checkpoint_name(since), checkpoint_name(until)
    around = {
        name
        for moment in (since, until)
        for name in place.names(
            checkpoint_name(moment - _AROUND), checkpoint_name(moment + _AROUND)
        )
    }
    names = sorted(around)
    chosen = {
        *_of_each_chain(name for name in names if name < start),
        *_of_each_chain(name for name in names if start <= name < end),
        *_of_each_chain(name for name in reversed(names) if name >= end),
    }
    return {name: place.get(name) for name in sorted(chosen)}


def _of_each_chain(names: Iterable[str]) -> Iterable[str]:
    """The last of those given."""
    return {name.partition("-")[2]: name for name in names}.values()
