"""Health follows its probes, and never says SERVING again once the end has begun."""

from __future__ import annotations

from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from kms_service.domain.errors import ServiceError, StateUnavailable, VaultSealed
from kms_service.rpc.health import Readiness
from kms_service.telemetry.metrics import Metrics

NEEDS = {"": ("vault", "database"), "keys": ("vault", "database"), "models": ("database",)}


class Dependencies:
    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.servicer = HealthServicer()
        self.metrics = Metrics([], [], [])
        self.readiness = Readiness(
            self.servicer,
            {name: self._probe(name) for name in ("vault", "database")},
            NEEDS,
            self.metrics,
        )

    def _probe(self, name: str):  # type: ignore[no-untyped-def]  # a closure
        def probe() -> None:
            if name in self.broken:
                raise self.broken[name]

        return probe

    def told(self) -> dict[str, str]:
        statuses = {}
        for service in NEEDS:
            answer = self.servicer.Check(HealthCheckRequest(service=service), None)  # type: ignore[arg-type]  # unused
            statuses[service] = HealthCheckResponse.ServingStatus.Name(answer.status)
        return statuses


def test_not_serving_until_probed() -> None:
    dependencies = Dependencies()
    assert set(dependencies.told().values()) == {"NOT_SERVING"}
    dependencies.readiness.probe()
    assert set(dependencies.told().values()) == {"SERVING"}
    assert dependencies.metrics.registry.get_sample_value("modelkms_ready") == 1


def test_each_service_needs_its_own() -> None:
    dependencies = Dependencies()
    errors: list[tuple[str, ServiceError | Exception, dict[str, str]]] = [
        ("vault", VaultSealed(), {"": "NOT_SERVING", "keys": "NOT_SERVING", "models": "SERVING"}),
        ("database", StateUnavailable(), dict.fromkeys(NEEDS, "NOT_SERVING")),
        ("vault", RuntimeError("a bug in a probe"), dict.fromkeys(NEEDS, "NOT_SERVING")),
    ]
    for name, error, expected in errors:
        dependencies.broken[name] = error
        dependencies.readiness.probe()
        assert dependencies.told() == expected
        sample = dependencies.metrics.registry.get_sample_value
        assert sample("modelkms_dependency_up", {"dependency": name}) == 0
        assert sample("modelkms_ready") == 0
    dependencies.broken.clear()
    dependencies.readiness.probe()
    assert set(dependencies.told().values()) == {"SERVING"}


def test_f64_after_close_nothing_serves_again() -> None:
    dependencies = Dependencies()
    dependencies.readiness.probe()
    dependencies.readiness.close()
    dependencies.readiness.probe()
    assert set(dependencies.told().values()) == {"NOT_SERVING"}
    assert dependencies.metrics.registry.get_sample_value("modelkms_ready") == 0
