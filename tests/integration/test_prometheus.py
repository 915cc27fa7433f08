"""A real Prometheus scrapes a running service: what dashboard and rules name exists, and planted
faults raise exactly the alerts they should. Waiting times of the rules are taken out, nothing else.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import hvac
import pytest
import yaml
from modelkms_api.v1 import (
    key_service_pb2,
    key_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

from kms_service.development.openbao import OpenBao
from kms_service.development.vault_setup import set_up
from tests.support.certificates import Issued, TestAuthority
from tests.support.service_process import POLICY, TRUST_DOMAIN, ServiceProcess
from tests.support.tools import REPOSITORY, prometheus_program

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

RULES = REPOSITORY / "deploy" / "prometheus" / "modelkms.rules.yml"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboards" / "modelkms.json"
WAIT_S = 90.0
OF_WORKERS = {"modelkms_worker_up"}
OF_CHECKPOINTS = {
    "modelkms_audit_checkpoint_timestamp_seconds",
    "modelkms_audit_unproven_records",
}
"""Not configured here; their own tests serve them."""


@dataclass
class Prometheus:
    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: Path, target_port: int) -> Prometheus:
        config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target_port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule.pop("for", None)
        (folder / RULES.name).write_text(yaml.safe_dump(rules))
        log = folder / "prometheus.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    prometheus_program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        end = time.monotonic() + WAIT_S
        while not (found := re.search(r'"Listening on" address=(\S+)', log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        return cls(f"http://{found[1]}", process)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        try:
            alerts = self.ask("alerts")["alerts"]
        except urllib.error.HTTPError:  # it has just begun
            return {"(Prometheus is not ready)"}
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def expect(self, *alerts: str) -> None:
        """Exactly these fire, within a while."""
        wanted = {f"ModelKMS{alert}" for alert in alerts}
        end = time.monotonic() + WAIT_S
        while (firing := self.firing()) != wanted:
            assert time.monotonic() < end, f"firing: {sorted(firing)}, wanted: {sorted(wanted)}"
            time.sleep(0.2)


@dataclass
class Rig:
    bao: OpenBao
    service: ServiceProcess
    prometheus: Prometheus

    def look(self) -> None:
        """A lease of a model that is not there, and a look at it: refused, recorded. The same by
        somebody without an identity."""
        for identity in ("reader/a", self.service.authority.issue([])):
            self._look_as(identity)

    def _look_as(self, identity: Issued | str) -> None:
        with self.service.channel(identity) as channel:
            keys = key_service_pb2_grpc.KeyServiceStub(channel)
            models = model_service_pb2_grpc.ModelServiceStub(channel)
            name = "projects/demo/models/none"
            with pytest.raises(grpc.RpcError):
                keys.LeaseDataKey(key_service_pb2.LeaseDataKeyRequest(name=name), timeout=10)
            with pytest.raises(grpc.RpcError):
                models.GetModel(model_service_pb2.GetModelRequest(name=name), timeout=10)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("prometheus")
    bao = OpenBao.start(tmp_path_factory.mktemp("bao"))
    roles = set_up(bao, tmp_path_factory.mktemp("roles"))
    officer = hvac.Client(url=bao.address, verify=str(bao.ca_file))
    officer.auth.approle.login(
        roles.officer.role_id_file.read_text(), roles.officer.secret_id_file.read_text()
    )
    officer.secrets.transit.create_key("modelkms-demo", derived=True, key_type="aes256-gcm96")
    service = ServiceProcess(
        folder / "service", TestAuthority(TRUST_DOMAIN), bao.address, bao.ca_file, roles.service
    )
    service.start()
    with service.channel("admin/a") as channel:
        model_service_pb2_grpc.ModelServiceStub(channel).CreateProject(
            model_service_pb2.CreateProjectRequest(project_id="demo"), timeout=10
        )
    service.stop()
    service.start()  # master keys are surveyed at the start
    prometheus = Prometheus.start(folder, service.metrics_port)
    try:
        yield Rig(bao, service, prometheus)
    finally:
        prometheus.stop()
        service.stop()
        bao.stop()


def expressions() -> dict[str, str]:
    """What dashboard and rules ask, by where it stands."""
    found = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for number, target in enumerate(panel.get("targets", [])):
            found[f"panel {panel['title']} {number}"] = target["expr"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            found[f"rule {rule.get('alert') or rule['record']}"] = rule["expr"]
    return found


def test_every_metric_that_dashboard_and_rules_name_exists(rig: Rig) -> None:
    asked = expressions()
    assert len(asked) > 70
    names = {
        name
        for expression in asked.values()
        for name in re.findall(r"\b(?:modelkms[_:](?!api\.)|process_)\w+(?::\w+)*", expression)
    } - (OF_WORKERS | OF_CHECKPOINTS)
    end = time.monotonic() + WAIT_S
    while missing := names - set(rig.prometheus.ask("label/__name__/values")):
        assert time.monotonic() < end, missing
        rig.look()
        time.sleep(0.5)


def test_every_panel_shows_something_on_a_running_stack(rig: Rig) -> None:
    panels = {
        where: expression.replace("$__rate_interval", "30s")
        for where, expression in expressions().items()
        if where.startswith("panel")
    }
    end = time.monotonic() + WAIT_S
    while empty := [where for where, ask in panels.items() if not rig.prometheus.query(ask)]:
        # Nothing is in flight between two calls: the one panel that may be empty.
        if [where for where in empty if "Calls in flight" not in where] == []:
            break
        assert time.monotonic() < end, empty
        rig.look()
        time.sleep(0.5)


def test_planted_faults_raise_exactly_the_alerts_they_should(rig: Rig) -> None:
    service, prometheus = rig.service, rig.prometheus
    prometheus.expect()
    rig.look()

    service.write_policies(POLICY + "permit (principal")
    prometheus.expect("PolicyRefused")
    service.write_policies(POLICY)
    prometheus.expect()

    key = (service.tls_folder / "key.pem").read_bytes()
    service.authority.server().write(service.tls_folder)
    new_key = (service.tls_folder / "key.pem").read_bytes()
    (service.tls_folder / "key.pem").write_bytes(key)  # of another certificate
    rig.look()
    prometheus.expect("TlsReloadRefused")
    (service.tls_folder / "key.pem").write_bytes(new_key)
    rig.look()
    prometheus.expect()

    spent = service.authority.server(starts_in=timedelta(hours=-9), lifetime=timedelta(minutes=10))
    spent.write(service.tls_folder)
    rig.look()
    prometheus.expect("CertificateExpiring", "CertificateAlmostExpired")
    service.authority.server().write(service.tls_folder)
    rig.look()
    prometheus.expect()

    rig.bao.kill()
    prometheus.expect("VaultUnreachable")
    rig.bao.start_again()
    prometheus.expect()

    # The audit log's disk is full: a refusal cannot be recorded. (So it stays firing: 5 minutes.)
    assert service.process is not None
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    with service.channel("reader/a") as channel, pytest.raises(grpc.RpcError):
        model_service_pb2_grpc.ModelServiceStub(channel).GetModel(
            model_service_pb2.GetModelRequest(name="projects/demo/models/none"), timeout=10
        )
    prometheus.expect("AuditFailing")

    service.signal(signal.SIGKILL)
    service.wait()
    prometheus.expect("Down", "AuditFailing")
