"""Prometheus metrics of the SDK, for programs that ask for them. Needs the extra `metrics`.

client = modelkms.connect(observer=ClientMetrics())
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from modelkms.errors import ModelKmsError
from modelkms.timings import Timings

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_OTHER = "other"


class ClientMetrics:
    """Implements `modelkms.observing.Observer`. One a process and registry; for all its clients.

    Args:
        registry: where they are registered; prometheus_client's own if left out.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._ready = Histogram(
            "modelkms_client_ready_seconds",
            "From asking for a model until it is open, or loaded",
            ("until",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        steps = Histogram(
            "modelkms_client_step_seconds",
            "What one step of that took",
            ("step",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._steps = {step: steps.labels(step=step) for step in ("lease", "download", "decrypt")}
        self._load = steps.labels(step="load")
        self._failures = Counter(
            "modelkms_client_open_failures_total",
            "Models that could not be opened, by reason",
            ("reason",),
            registry=registry,
        )
        self._reasons = frozenset(_reasons(ModelKmsError))
        lookups = Counter(
            "modelkms_client_cache_lookups_total",
            "Looks for an artifact in the cache",
            ("result",),
            registry=registry,
        )
        self._lookups = {hit: lookups.labels(result="hit" if hit else "miss") for hit in (0, 1)}

    def opened(self, timings: Timings) -> None:
        seconds = {
            "lease": timings.resolve_s + timings.lease_s,
            "download": timings.download_s,
            "decrypt": timings.decrypt_s,
        }
        for step, taken in seconds.items():
            self._steps[step].observe(taken)
        self._ready.labels(until="open").observe(sum(seconds.values()))

    def loaded(self, load_s: float, ready_s: float) -> None:
        self._load.observe(load_s)
        self._ready.labels(until="loaded").observe(ready_s)

    def not_opened(self, reason: str) -> None:
        # A service newer than this client may send reasons that it does not know: one series.
        self._failures.labels(reason=reason if reason in self._reasons else _OTHER).inc()

    def looked_up(self, hit: bool) -> None:
        self._lookups[hit].inc()


def _reasons(kind: type[ModelKmsError]) -> Iterator[str]:
    yield kind.default_reason
    for below in kind.__subclasses__():
        yield from _reasons(below)
