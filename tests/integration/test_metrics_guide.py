"""docs/guides/metrics.md lists what a service serves: every metric, its kind and its labels."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kms_service.bootstrap import build
from kms_service.development.vault_setup import AppRoleFiles
from kms_service.telemetry.master_key_metrics import MasterKeyMetrics, MasterKeyReading
from tests.support.certificates import TestAuthority
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess
from tests.support.tools import REPOSITORY

GUIDE = REPOSITORY / "docs" / "guides" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram)(?:, [^|]*)? \|([^|]*)\| .+ \|$", re.M)
BY_WORKERS_ONLY = {"modelkms_worker_up"}
WITH_A_WATCH_PORT_ONLY = {"modelkms_watches"}
WITHOUT_VAULT = {
    "modelkms_vault_token_ttl_seconds",
    "modelkms_audit_checkpoint_timestamp_seconds",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    return scrape(tmp_path_factory.mktemp("served"))


def test_the_guide_lists_every_metric_with_its_kind_and_labels(served: dict[str, Metric]) -> None:
    rows = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in listed()}
    ours = {name for name in served if name.startswith("modelkms_")}
    assert (
        rows.keys() - BY_WORKERS_ONLY - WITH_A_WATCH_PORT_ONLY - WITHOUT_VAULT
        == ours - WITHOUT_VAULT
    )

    for name in ours:
        family = served[name]
        kind, labels = rows[name]
        assert kind == family.type, name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == labels, name
        # A master key's gauges have no samples here; their labels are all alike.
        assert family.samples or name in master_key_gauges(), name


def test_the_process_has_the_usual_metrics_and_the_guide_names_them(
    served: dict[str, Metric],
) -> None:
    usual = {name for name in served if name.startswith("process_")}
    assert usual == set(re.findall(r"`(process_\w+)`", GUIDE.read_text()))


def listed() -> list[tuple[str, str, str]]:
    rows = ROW.findall(GUIDE.read_text())
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names)), "listed twice"
    return rows


def master_key_gauges() -> set[str]:
    metrics = MasterKeyMetrics()
    metrics.put("demo", MasterKeyReading(True, 1, 1.0, 1.0, 1, 1))
    families = list(metrics.collect())
    assert all(sample.labels == {"project": "demo"} for f in families for sample in f.samples)
    return {family.name for family in families}


def scrape(folder: Path) -> dict[str, Metric]:
    """What a service serves that has just started; its Vault does not answer."""
    authority = TestAuthority(TRUST_DOMAIN)
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(authority.pem)
    process = ServiceProcess(
        folder / "service",
        authority,
        "https://127.0.0.1:1",
        ca_file,
        AppRoleFiles(folder / "role-id", folder / "secret-id"),
    )
    process.settings["AUDIT__CHECKPOINTS__FOLDER"] = str(folder / "checkpoints")
    process.migrate()
    service = build(process.config())
    service.start()
    process.grpc_port = service.grpc_port
    try:
        with process.channel("admin/a") as channel:  # some series begin with the first call
            stub: Any = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        url = f"http://127.0.0.1:{service.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        service.stop(0.2)
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }
