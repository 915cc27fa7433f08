"""A service that is constructed: what starts and stops, in which order."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kms_service import __version__
from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.errors import ConfigurationError, ServiceError
from kms_service.domain.ports import AuditLog, Clock
from kms_service.rpc.health import Readiness
from kms_service.rpc.server import RpcServer
from kms_service.rpc.watch_server import WatchServer
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics_server import MetricsServer
from kms_service.timers import Timer

_log = get_logger(__name__)
_TIMER_WAIT_S = 5.0


@dataclass(frozen=True)
class ServiceParts:
    """What `bootstrap.build` made.

    Attributes:
        reload_policies: reads them again; keeps the last good set.
        record_policies: records the set in force, and from then on every other.
        closers: free what adapters hold, in this order, after the last call has ended.
        port_file: see `config.ServerSection`.
    """

    rpc: RpcServer
    watch: WatchServer | None
    metrics: MetricsServer
    readiness: Readiness
    timers: Sequence[Timer]
    audit: AuditLog
    clock: Clock
    reload_policies: Callable[[], None]
    record_policies: Callable[[], None]
    closers: Sequence[Callable[[], object]]
    port_file: Path | None = None
    details: dict[str, str] = field(default_factory=dict)


class Service:
    """Starts once, stops once."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        self._announced = False
        self._stopped = False

    @property
    def grpc_port(self) -> int:
        """The port listened on; 0 before `start`."""
        return self._parts.rpc.port

    @property
    def token_port(self) -> int:
        """The token port listened on; 0 without one."""
        return self._parts.rpc.token_port

    @property
    def watch_port(self) -> int:
        """The port of watches; 0 without one."""
        return self._parts.watch.port if self._parts.watch is not None else 0

    @property
    def watch_token_port(self) -> int:
        """The token port of watches; 0 without one."""
        return self._parts.watch.token_port if self._parts.watch is not None else 0

    @property
    def metrics_port(self) -> int:
        return self._parts.metrics.port

    def start(self) -> None:
        """Listen and answer. Vault and database may be away: then health says NOT_SERVING.

        Raises:
            ConfigurationError: a port cannot be listened on, or TLS 1.2 would be accepted.
            AuditUnavailable: the start, or the policies, cannot be recorded.
        """
        parts = self._parts
        # Both ports first: a second service on the same ports must not write to the audit log.
        parts.rpc.bind()
        parts.metrics.start()
        self._record("service_started")
        self._announced = True
        parts.record_policies()
        parts.readiness.probe()
        parts.rpc.start()
        if parts.watch is not None:
            parts.watch.start()
        for timer in parts.timers:
            timer.start()
        self._write_port_file()
        _log.info("service_started", grpc_port=self.grpc_port, metrics_port=self.metrics_port)

    def stop(self, grace_s: float) -> None:
        """Readiness off, calls in flight end within `grace_s`, the rest is cancelled; the end is
        recorded, then everything is freed. Idempotent; harmless after a failed start."""
        if self._stopped:
            return
        self._stopped = True
        parts = self._parts
        began = time.monotonic()
        parts.readiness.close()
        self._remove_port_file()
        if parts.watch is not None:
            parts.watch.stop(0)  # they watch elsewhere at once; nothing of theirs is half done
        clean = parts.rpc.stop(grace_s)
        for timer in parts.timers:
            timer.stop(_TIMER_WAIT_S)
        if self._announced:
            self._record_stop(clean)
        for close in parts.closers:
            try:
                close()
            except Exception:
                _log.exception("close_failed")
        parts.metrics.stop()
        _log.info("service_stopped", clean=clean, seconds=round(time.monotonic() - began, 3))

    def reload_policies(self) -> None:
        """Read the policies again; a set that is refused leaves the last good one in force."""
        try:
            self._parts.reload_policies()
        except ServiceError as error:
            _log.error("policy_reload_refused", error=error.message)
            return
        _log.info("policies_reloaded")

    def _record_stop(self, clean: bool) -> None:
        try:
            self._record("service_stopped", all_calls_ended="yes" if clean else "no")
        except ServiceError as error:
            _log.error("stop_not_recorded", reason=error.reason)

    def _record(self, event: str, **details: str) -> None:
        self._parts.audit.append(
            AuditRecord(
                time=self._parts.clock.now(),
                event=event,
                outcome=Outcome.OK,
                details={
                    "version": __version__,
                    "pid": str(os.getpid()),
                    **self._parts.details,
                    **details,
                },
            )
        )

    def _write_port_file(self) -> None:
        """Atomically, and last: who sees it may connect."""
        path = self._parts.port_file
        if path is None:
            return
        temporary = path.with_name(path.name + ".new")
        ports = {"grpc": self.grpc_port, "metrics": self.metrics_port}
        if self.token_port:
            ports["token"] = self.token_port
        if self.watch_port:
            ports["watch"] = self.watch_port
        if self.watch_token_port:
            ports["watch_token"] = self.watch_token_port
        try:
            temporary.write_text(json.dumps(ports) + "\n")
            temporary.replace(path)
        except OSError as error:
            raise ConfigurationError(
                f"server.port_file: cannot write {path}: {error.strerror}"
            ) from error

    def _remove_port_file(self) -> None:
        path = self._parts.port_file
        if path is not None and self._announced:
            path.unlink(missing_ok=True)
