"""The metrics endpoint: its own port, nothing but metrics, a clean end."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest

from kms_service.domain.errors import ConfigurationError
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.metrics_server import MetricsServer


def fetch(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body: bytes = answer.read()
    return body.decode()


def test_metrics_are_served_until_stopped() -> None:
    metrics = Metrics(["/s/M"], ["OK"], ["NOT_FOUND"])
    metrics.leases_issued.inc(3)
    metrics.certificate_expires(datetime(2030, 1, 1, tzinfo=UTC))
    metrics.observe_gauge("modelkms_asked", "Asked at each scrape.", lambda: 7.0)
    metrics.observe_gauge("modelkms_unknown", "Not known now.", lambda: None)
    server = MetricsServer("127.0.0.1", 0, metrics.registry)
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
        server = MetricsServer("127.0.0.1", port, metrics.registry)
        with pytest.raises(ConfigurationError) as caught:
            server.start()
        server.stop()
    assert caught.value.message == (
        f"metrics.listen: cannot listen on 127.0.0.1:{port}: the port is in use; "
        "stop the other process or choose another port"
    )
