"""This process's part in rewraps: threads that work, a look at master keys, metrics of both."""

from __future__ import annotations

from kms_service.config import RewrapSection
from kms_service.domain.ports import AuditLog, Clock, Database, Rewrapper, Rewraps
from kms_service.telemetry.metrics import Metrics
from kms_service.timers import Timer
from kms_service.usecases.rewrap_data_keys import RewrapWorker
from kms_service.usecases.watch_master_keys import WatchMasterKeys

_LOOK_FOR_WORK_EVERY_S = 1.0
_GAUGES_EVERY_S = 5.0


def rewrap_timers(
    section: RewrapSection,
    *,
    database: Database,
    rewraps: Rewraps,
    rewrapper: Rewrapper,
    audit: AuditLog,
    clock: Clock,
    metrics: Metrics,
) -> list[Timer]:
    """Not started."""
    worker = RewrapWorker(
        rewraps=rewraps,
        rewrapper=rewrapper,
        audit=audit,
        clock=clock,
        counters=_Counters(metrics),
    )
    watch = WatchMasterKeys(
        database=database,
        rewraps=rewraps,
        rewrapper=rewrapper,
        audit=audit,
        clock=clock,
        rewrap=section.automatic,
        keys_per_second=section.keys_per_second,
        max_age=section.master_key_max_age,
    )

    def look() -> None:
        metrics.rotation_overdue.set(watch().rotation_overdue)

    def count() -> None:
        running = rewraps.running()
        metrics.rewraps_running.set(len(running))
        metrics.rewrap_keys_left.set(sum(rewrap.left for rewrap in running))

    workers = [_working(f"rewrap-{number}", worker) for number in range(section.threads)]
    return [
        *workers,
        Timer("rewraps", _GAUGES_EVERY_S, count),
        Timer("new-master-keys", section.watch_every_s, look),
    ]


def _working(name: str, worker: RewrapWorker) -> Timer:
    """A thread that ends between two batches when the service stops (F64)."""
    timer: Timer

    def work() -> None:
        worker(timer.stopping)

    timer = Timer(name, _LOOK_FOR_WORK_EVERY_S, work)
    return timer


class _Counters:
    """Implements `RewrapCounters`."""

    def __init__(self, metrics: Metrics) -> None:
        labels = metrics.rewrapped_keys.labels
        self.rewrapped = labels(result="rewrapped").inc
        self.skipped = labels(result="skipped").inc
        self.failed = labels(result="failed").inc
