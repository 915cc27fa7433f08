"""The metrics endpoint: its own port, nothing but metrics, a clean end."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kms_service.domain.errors import ConfigurationError
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.metrics_server import MetricsServer
from kms_service.telemetry.workers import merged_registry


def fetch(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body: bytes = answer.read()
    return body.decode()


def test_metrics_are_served_until_stopped() -> None:
    metrics = Metrics(["/s/M"], ["OK"], ["NOT_FOUND"])
    metrics.leases_issued.inc(3)
    metrics.certificate(datetime(2029, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC))
    metrics.observe_gauge("modelkms_asked", "Asked at each scrape.", lambda: 7.0)
    metrics.observe_gauge("modelkms_unknown", "Not known now.", lambda: None)
    server = MetricsServer(("127.0.0.1", 0), metrics.registry)
    server.start()
    try:
        text = fetch(server.port)
        assert "modelkms_leases_issued_total 3.0" in text
        assert "modelkms_asked 7.0" in text
        assert "modelkms_unknown" not in text
        assert "modelkms_certificate_expiry_timestamp_seconds 1.8934" in text
        assert 'modelkms_dependency_up{dependency="vault"} 0.0' in text
        assert "python_info" not in text  # nothing of the global registry
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(server.port, "/")
    finally:
        server.stop()
        server.stop()
    with pytest.raises(urllib.error.URLError):
        fetch(server.port)


def test_port_in_use_is_told_by_its_setting() -> None:
    metrics = Metrics([], [], [])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = MetricsServer(("127.0.0.1", port), metrics.registry)
        with pytest.raises(ConfigurationError) as caught:
            server.start()
        server.stop()
    assert caught.value.message == (
        f"metrics.listen: cannot listen on 127.0.0.1:{port}: the port is in use; "
        "stop the other process or choose another port"
    )


def test_one_scrape_tells_all_workers_apart(tmp_path: Path) -> None:
    """Each worker serves its registry on a socket; the parent's answer holds all."""
    workers = {str(number): Metrics(["/s/M"], ["OK"], []) for number in range(3)}
    sockets = {number: tmp_path / f"worker-{number}.sock" for number in workers}
    servers = [MetricsServer(sockets[n], metrics.registry) for n, metrics in workers.items()]
    sockets["2"].write_bytes(b"")  # left behind by a worker that was killed
    for number, metrics in workers.items():
        metrics.method("/s/M").observe("OK", "", 0.001 * int(number))
        metrics.leases_live.set(7)
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        assert sockets["0"].stat().st_mode & 0o777 == 0o600
        parent = MetricsServer(("127.0.0.1", 0), merged_registry(sockets))
        parent.start()
        stack.callback(parent.stop)
        text = fetch(parent.port)
        for number in workers:
            labels = f'code="OK",method="/s/M",reason="",worker="{number}"'
            assert f"modelkms_rpc_requests_total{{{labels}}} 1.0" in text
            assert f'modelkms_worker_up{{worker="{number}"}} 1.0' in text
        assert text.count("# TYPE modelkms_rpc_seconds histogram") == 1
        assert families(text).keys() == families_of(workers["0"].registry) | {"modelkms_worker_up"}

        servers[1].stop()
        text = fetch(parent.port)
        assert 'modelkms_worker_up{worker="1"} 0.0' in text
        assert 'modelkms_leases_live{worker="1"}' not in text
        assert 'modelkms_leases_live{worker="2"} 7.0' in text


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def families_of(registry: CollectorRegistry) -> set[str]:
    # Info has its suffix in the name of its only sample, which is what a scraper sees.
    return {f"{f.name}_info" if f.type == "info" else f.name for f in registry.collect()}
