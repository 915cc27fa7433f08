"""What is counted. A registry of our own; labels come from closed sets, else `other` (F32)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily

from kms_service import __version__
from kms_service.telemetry.master_key_metrics import MasterKeyMetrics
from kms_service.telemetry.steps import StepTimes

# A second series for each, with when it began: process_start_time_seconds tells it once for all.
disable_created_metrics()  # type: ignore[no-untyped-call]

OTHER = "other"
CACHES = ("certificate", "policy_decision", "token", "transport_session")
_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class MethodMetrics:
    """Counters of one RPC method, their children bound once.

    Not thread-safe to construct twice for a method, safe to use from many threads.
    """

    def __init__(
        self,
        method: str,
        requests: Counter,
        seconds: Histogram,
        in_flight: Gauge,
        codes: Collection[str],
        reasons: Collection[str],
    ) -> None:
        self._method = method
        self._requests = requests
        self._seconds = seconds.labels(method=method)
        self._codes = frozenset(codes)
        self._reasons = frozenset(reasons)
        self._bound: dict[tuple[str, str], Counter] = {}
        self.in_flight = in_flight.labels(method=method)

    def observe(self, code: str, reason: str, seconds: float) -> None:
        """Count one finished call."""
        bound = self._bound.get((code, reason))
        if bound is None:
            bound = self._requests.labels(
                method=self._method,
                code=code if code in self._codes else OTHER,
                reason=reason if reason in self._reasons else OTHER,
            )
            # Bounded although the key is what was asked: unknown values share one entry.
            if code in self._codes and reason in self._reasons:
                self._bound[code, reason] = bound
        bound.inc()
        self._seconds.observe(seconds)


class Metrics:
    """All metrics of one service.

    Args:
        methods: full gRPC method names that exist; others are counted as `other`.
        codes: names of gRPC status codes.
        reasons: stable reasons of errors (`""` stands for success and is added).
    """

    def __init__(
        self, methods: Collection[str], codes: Collection[str], reasons: Collection[str]
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        Info("modelkms_build", "The version that runs", registry=self.registry).info(
            {"version": __version__}
        )
        self._codes = frozenset(codes)
        self._reasons = frozenset({"", *reasons})
        self._requests = Counter(
            "modelkms_rpc_requests_total",
            "Finished calls",
            ("method", "code", "reason"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "modelkms_rpc_seconds",
            "Duration of calls in the service",
            ("method",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "modelkms_rpc_in_flight", "Calls being handled", ("method",), registry=self.registry
        )
        self._methods = {method: self._method(method) for method in (*methods, OTHER)}
        self.steps = StepTimes()
        self.registry.register(self.steps)
        self._caches = Counter(
            "modelkms_cache_lookups_total",
            "Looks into a cache in memory, by whether it was there",
            ("cache", "result"),
            registry=self.registry,
        )
        self.leases_issued = self._counter(
            "modelkms_leases_issued_total", "Leases issued with their first key"
        )
        self.leases_renewed = self._counter("modelkms_leases_renewed_total", "Renewals of leases")
        self.leases_revoked = self._counter(
            "modelkms_leases_revoked_total", "Live leases ended by RevokeLeases"
        )
        self.leases_swept = self._counter(
            "modelkms_leases_swept_total", "Leases deleted from the database, long after their end"
        )
        self.decisions_dropped = self._counter(
            "modelkms_decisions_dropped_total",
            "Decisions of policy that were not kept, since too many came at once",
        )
        self.leases_live = self._gauge("modelkms_leases_live", "Leases that have not ended")
        self.versions_expired = self._counter(
            "modelkms_versions_expired_total",
            "PENDING versions destroyed, never finalized",
        )
        self.orphans_swept = self._counter(
            "modelkms_orphans_swept_total", "Stored objects deleted that no version used"
        )
        self.versions_destroyed = self._counter(
            "modelkms_versions_destroyed_total", "Versions whose wrapped data key was destroyed"
        )
        self.rewrapped_keys = Counter(
            "modelkms_rewrap_keys_total",
            "Data keys that this process tried to move under a newer master-key version",
            ("result",),
            registry=self.registry,
        )
        for result in ("rewrapped", "skipped", "failed"):
            self.rewrapped_keys.labels(result=result)
        self.rewraps_running = self._gauge("modelkms_rewraps_running", "Rewraps under way")
        self.rewrap_keys_left = self._gauge(
            "modelkms_rewrap_keys_left", "Data keys that rewraps under way have left to try"
        )
        self.rotation_overdue = self._gauge(
            "modelkms_master_key_rotation_overdue",
            "Master keys whose newest version is older than it should be",
        )
        self.audit_records = self._counter(
            "modelkms_audit_records_total", "Audit records made durable"
        )
        self.audit_failures = self._counter(
            "modelkms_audit_failures_total", "Audit records that could not be made durable"
        )
        self.data_keys = Counter(
            "modelkms_data_keys_unwrapped_total",
            "Data keys given to leases, by where they came from",
            ("source",),
            registry=self.registry,
        )
        for source in ("hit", "miss", "shared", "outage"):
            self.data_keys.labels(source=source)
        self.audit_stream_dropped = self._counter(
            "modelkms_audit_stream_dropped_total",
            "Audit records left out of the second copy, which may lag; the file has them",
        )
        self.audit_checkpoints = Counter(
            "modelkms_audit_checkpoints_total",
            "Checkpoints of the audit chains, by whether they were shipped",
            ("result",),
            registry=self.registry,
        )
        for result in ("shipped", "failed"):
            self.audit_checkpoints.labels(result=result)
        self.policy_loads = Counter(
            "modelkms_policy_loads_total",
            "Policy sets read, by whether they took effect",
            ("result",),
            registry=self.registry,
        )
        for result in ("loaded", "refused"):
            self.policy_loads.labels(result=result)
        self.policies_current = self._gauge(
            "modelkms_policies_current",
            "0 while the policy files are refused and the last good set stays in force",
        )
        self.break_glass = self._gauge(
            "modelkms_break_glass_policies",
            "Break-glass policies in the set in force, ended ones included: normally 0",
        )
        self.policy_epoch = self._gauge(
            "modelkms_policy_epoch", "How often a policy set took effect since the start"
        )
        self.policy_fingerprint = self._gauge(
            "modelkms_policy_fingerprint",
            "48 bits of a hash of the policy set in force: equal where the sets are equal",
        )
        self.master_keys = MasterKeyMetrics()
        self.registry.register(self.master_keys)
        self._artifact_bytes = Counter(
            "modelkms_artifact_bytes_total",
            "Bytes of ciphertext that went through the service",
            ("direction",),
            registry=self.registry,
        )
        self.artifact_bytes_read = self._artifact_bytes.labels(direction="read")
        self.artifact_bytes_written = self._artifact_bytes.labels(direction="written")
        self.issuer_keys_current = self._gauge(
            "modelkms_issuer_keys_current",
            "0 while the keys of a token issuer are older than they should be",
        )
        self.issuer_keys_current.set(1)
        self.dependency_up = Gauge(
            "modelkms_dependency_up",
            "1 while the last probe of the dependency succeeded",
            ("dependency",),
            registry=self.registry,
        )
        for dependency in ("vault", "database"):
            self.dependency_up.labels(dependency=dependency).set(0)
        self.tls_reloads = Counter(
            "modelkms_tls_reloads_total",
            "Reloads of certificate, key or client CA, by whether they took effect",
            ("result",),
            registry=self.registry,
        )
        for result in ("loaded", "refused"):
            self.tls_reloads.labels(result=result)
        self.tls_last_reload_ok = self._gauge(
            "modelkms_tls_last_reload_ok",
            "0 while the files of certificate, key or client CA are unusable: last good kept",
        )
        self.certificate_issued = self._gauge(
            "modelkms_certificate_issued_timestamp_seconds",
            "When the server certificate in use became valid (Unix time)",
        )
        self.certificate_expiry = self._gauge(
            "modelkms_certificate_expiry_timestamp_seconds",
            "When the server certificate in use expires (Unix time)",
        )
        self.ready = self._gauge("modelkms_ready", "1 while health says SERVING")

    def method(self, method: str) -> MethodMetrics:
        """Counters of one full gRPC method name."""
        return self._methods.get(method, self._methods[OTHER])

    def cache(self, name: str) -> Callable[[bool], None]:
        """What a cache is to call at each look into it, with whether it was there.

        Args:
            name: one of `CACHES`.
        """
        if name not in CACHES:
            raise ValueError(f"no such cache: {name}")
        hit = self._caches.labels(cache=name, result="hit")
        miss = self._caches.labels(cache=name, result="miss")

        def looked_up(found: bool) -> None:
            (hit if found else miss).inc()

        return looked_up

    def certificate(self, issued: datetime, expires: datetime) -> None:
        """Tell of the server certificate in use."""
        self.certificate_issued.set(issued.timestamp())
        self.certificate_expiry.set(expires.timestamp())

    def observe_gauge(self, name: str, help_text: str, value: Callable[[], float | None]) -> None:
        """A gauge whose value is asked for at each scrape; None leaves it out."""
        self.registry.register(_AskedGauge(name, help_text, value))

    def _method(self, method: str) -> MethodMetrics:
        return MethodMetrics(
            method, self._requests, self._seconds, self._in_flight, self._codes, self._reasons
        )

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, registry=self.registry)


class _AskedGauge:
    """Collector of one value, asked for when scraped."""

    def __init__(self, name: str, help_text: str, value: Callable[[], float | None]) -> None:
        self._name, self._help, self._value = name, help_text, value
        self._lock = threading.Lock()

    def collect(self) -> list[GaugeMetricFamily]:
        with self._lock:
            value = self._value()
        return [] if value is None else [GaugeMetricFamily(self._name, self._help, value=value)]

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(self._name, self._help)]
