"""Health: a background probe of what the service stands on, told by `grpc.health.v1`.

Vault away: keys cannot be issued, but the catalogue can still be read. The service stays alive
either way; NOT_SERVING says "not ready", never "restart me".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from kms_service.domain.errors import ServiceError
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics import Metrics

_log = get_logger(__name__)
OVERALL = ""
_PROBED_WITHIN_S = 60.0
"""A probe is bounded by seconds. One that has not ended for so long never will: restart us."""


@dataclass(frozen=True, slots=True)
class DependencyState:
    """As last probed.

    Attributes:
        reason: why it is not well; None if it is.
        since: when that began, as far as this process knows.
    """

    name: str
    reason: str | None
    since: datetime


class Readiness:
    """Probes dependencies and keeps the health service current.

    Args:
        servicer: told each change.
        probes: dependency name to a call that returns if it is well and raises ServiceError.
        needs: service name (`""` for the whole) to the dependencies it needs.
    """

    def __init__(
        self,
        servicer: HealthServicer,
        probes: Mapping[str, Callable[[], None]],
        needs: Mapping[str, tuple[str, ...]],
        metrics: Metrics,
    ) -> None:
        self._servicer = servicer
        self._probes = probes
        self._needs = needs
        self._metrics = metrics
        self._reasons: dict[str, str | None] = {}
        self._since: dict[str, datetime] = {}
        self._probed_at_s = time.monotonic()
        self._lock = threading.Lock()
        self._closing = False
        for service in needs:
            servicer.set(service, HealthCheckResponse.NOT_SERVING)

    def probe(self) -> None:
        """Ask every dependency once. Never raises."""
        for dependency, ask in self._probes.items():
            self._note(dependency, _why_not(ask))
        self._probed_at_s = time.monotonic()
        self._tell()

    @property
    def dependencies(self) -> Sequence[DependencyState]:
        """Those that were probed."""
        since = dict(self._since)
        return [DependencyState(name, self._reasons[name], since[name]) for name in since]

    @property
    def alive(self) -> bool:
        """Whether probing goes on. Says nothing of what the probes find: a process whose Vault is
        away must not be restarted, for that would lose the keys it has in memory."""
        return time.monotonic() - self._probed_at_s < _PROBED_WITHIN_S

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """NOT_SERVING from now on, whatever probes say."""
        with self._lock:
            self._closing = True
            self._servicer.enter_graceful_shutdown()
            self._metrics.ready.set(0)

    def _note(self, dependency: str, reason: str | None) -> None:
        self._metrics.dependency_up.labels(dependency=dependency).set(reason is None)
        first = dependency not in self._reasons
        if first or self._reasons[dependency] != reason:
            if reason is not None:
                _log.warning("dependency_down", dependency=dependency, reason=reason)
            else:
                _log.info("dependency_up", dependency=dependency)
            self._reasons[dependency] = reason
            self._since[dependency] = datetime.now(UTC)

    def _tell(self) -> None:
        with self._lock:
            if self._closing:
                return
            for service, needs in self._needs.items():
                well = all(self._reasons.get(need, "") is None for need in needs)
                self._servicer.set(
                    service,
                    HealthCheckResponse.SERVING if well else HealthCheckResponse.NOT_SERVING,
                )
                if service == OVERALL:
                    self._metrics.ready.set(well)


def _why_not(ask: Callable[[], None]) -> str | None:
    try:
        ask()
    except ServiceError as error:
        return error.reason
    except Exception:
        _log.exception("probe_failed")
        return "INTERNAL_ERROR"
    return None
