"""What is known of each project's master key, as gauges.

Projects are made by administrators, yet their number is not ours to bound: those beyond the first
hundred share one set of series named `other`, which tells the worst of them (F32).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily

MAX_PROJECTS = 100
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class MasterKeyReading:
    """One look at a project's master key.

    Attributes:
        usable: Vault has it, and it is as we need it.
        version, rotated_at, rotation_period_s: the newest version, when it was made (Unix time),
            and how often Vault rotates by itself (0: never); meaningless unless `usable`.
        keys: data keys under any version of it.
        keys_under_old_versions: those not under the newest.
    """

    usable: bool
    version: int = 0
    rotated_at: float = 0.0
    rotation_period_s: float = 0.0
    keys: int = 0
    keys_under_old_versions: int = 0


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    help_text: str
    value: Callable[[MasterKeyReading], float | None]
    merge: Callable[[Sequence[float]], float]


def _if_usable(value: Callable[[MasterKeyReading], float]) -> Callable[..., float | None]:
    return lambda reading: value(reading) if reading.usable else None


_FAMILIES = (
    _Family(
        "modelkms_master_key_usable",
        "1 while Vault has the project's master key as the service needs it",
        lambda reading: float(reading.usable),
        min,
    ),
    _Family(
        "modelkms_master_key_version",
        "Newest version of the project's master key",
        _if_usable(lambda reading: float(reading.version)),
        min,
    ),
    _Family(
        "modelkms_master_key_rotated_timestamp_seconds",
        "When the newest version of the project's master key was made (Unix time)",
        _if_usable(lambda reading: reading.rotated_at),
        min,
    ),
    _Family(
        "modelkms_master_key_rotation_period_seconds",
        "How often Vault rotates the project's master key by itself; 0: never",
        _if_usable(lambda reading: reading.rotation_period_s),
        min,
    ),
    _Family(
        "modelkms_data_keys",
        "Data keys that are kept, wrapped by the project's master key",
        lambda reading: float(reading.keys),
        sum,
    ),
    _Family(
        "modelkms_data_keys_under_old_versions",
        "Data keys still wrapped by an older version of the project's master key",
        _if_usable(lambda reading: float(reading.keys_under_old_versions)),
        sum,
    ),
)


class MasterKeyMetrics:
    """A collector for a prometheus_client registry. Safe to use from many threads."""

    def __init__(self) -> None:
        self._readings: dict[str, MasterKeyReading] = {}
        self._lock = threading.Lock()

    def put(self, project: str, reading: MasterKeyReading) -> None:
        """Remember the newest look at a project's master key."""
        with self._lock:
            self._readings[project] = reading

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called at each scrape."""
        with self._lock:
            readings = sorted(self._readings.items())
        for family in _FAMILIES:
            metric = GaugeMetricFamily(family.name, family.help_text, labels=("project",))
            others = []
            for number, (project, reading) in enumerate(readings):
                value = family.value(reading)
                if value is None:
                    continue
                if number < MAX_PROJECTS and project != _OTHER:
                    metric.add_metric((project,), value)
                else:
                    others.append(value)
            if others:
                metric.add_metric((_OTHER,), family.merge(others))
            yield metric

    def describe(self) -> Iterator[GaugeMetricFamily]:
        for family in _FAMILIES:
            yield GaugeMetricFamily(family.name, family.help_text, labels=("project",))
