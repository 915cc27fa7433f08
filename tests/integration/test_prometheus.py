"""A real Prometheus scrapes a running service: what dashboard and rules name exists, and planted
faults raise exactly the alerts they should. Waiting times of the rules are taken out, nothing else.
"""

from __future__ import annotations

import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

import grpc
import pytest
import yaml
from modelkms.key_transport import KeyTransport
from modelkms_api.v1 import (
    key_service_pb2,
    key_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

from kms_service.development.openbao import OpenBao
from kms_service.domain.names import ModelName
from tests.support import vault_servers
from tests.support.certificates import Issued, TestAuthority
from tests.support.data_keys import fill
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer, oidc_issuer
from tests.support.otlp_collector import Collector, running_collector
from tests.support.postgresql import PostgresServer, name_of
from tests.support.prometheus import RULES, WAIT_S, Prometheus, impatient, panels, running
from tests.support.server import refusal
from tests.support.service_process import POLICY, TRUST_DOMAIN, ServiceProcess
from tests.support.vault_servers import VaultRig

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

OF_WORKERS = {"modelkms_worker_up"}
"""One process has none; `test_workers.py` has."""
CALLS_PER_S = 50
FACE = ModelName("demo", "face")


@dataclass
class Rig:
    vault: VaultRig
    postgres: PostgresServer
    issuer: OidcIssuer
    collector: Collector
    service: ServiceProcess
    prometheus: Prometheus

    def look(self) -> None:
        """A lease, and what is refused and recorded: of a model that is not there, and without an
        identity."""
        with self.service.channel("reader/a") as channel:
            lease(channel)
        for identity in ("reader/a", self.service.authority.issue([])):
            self._look_as(identity)

    def _look_as(self, identity: Issued | str) -> None:
        with self.service.channel(identity) as channel:
            with pytest.raises(grpc.RpcError):
                lease(channel, "projects/demo/models/none")
            with pytest.raises(grpc.RpcError):
                get_model(channel)


def lease(channel: grpc.Channel, name: str = f"{FACE}/versions/1") -> None:
    request = key_service_pb2.LeaseDataKeyRequest(
        name=name, client_key=KeyTransport().offer().message
    )
    key_service_pb2_grpc.KeyServiceStub(channel).LeaseDataKey(request, timeout=10)


def get_model(channel: grpc.Channel) -> None:
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    request = model_service_pb2.GetModelRequest(name="projects/demo/models/none")
    models.GetModel(request, timeout=10)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        vault = stack.enter_context(vault_servers.running("openbao", folder / "vault"))
        for name in ("demo", "gone"):
            vault.make_key(f"modelkms-{name}")
        postgres = PostgresServer.start()
        stack.callback(postgres.remove)
        (folder / "issuer").mkdir()
        issuer = stack.enter_context(oidc_issuer(folder / "issuer"))
        collector = stack.enter_context(running_collector())
        service = ServiceProcess(
            folder / "service",
            TestAuthority(TRUST_DOMAIN),
            vault.server.address,
            vault.server.ca_file,
            vault.roles.service,
            {
                "DATABASE__URL": postgres.new_database(),
                "SERVER__TOKEN_LISTEN": "127.0.0.1:0",
                "SERVER__CALLS_PER_PRINCIPAL_S": str(CALLS_PER_S),
                "WATCH__LISTEN": "127.0.0.1:0",
                "REWRAP__WATCH_EVERY_S": "1",
                "AUDIT__STREAM": "otlp",
                "AUDIT__OTLP_ENDPOINT": collector.endpoint("logs"),
                "AUDIT__CHECKPOINTS__FOLDER": str(folder / "checkpoints"),
                "AUDIT__CHECKPOINTS__EVERY_S": "1",
            },
        )
        with service.config_file.open("a") as file:
            file.write(
                f"""
[[issuers]]
name = "company"
issuer = "{issuer.url}"
audiences = ["{AUDIENCE}"]
ca_file = "{issuer.ca_file}"
keys_refresh_s = 1
"""
            )
        service.start()
        stack.callback(service.stop)
        publish(service, vault)
        # How fast a lease is on this machine, beside other tests, is not what is tried here.
        rules = impatient(RULES.read_text(), {"> 900": "> 20", 'le="0.1"': 'le="10.0"'})
        prometheus = stack.enter_context(running(folder, [service.metrics_port], rules))
        yield Rig(vault, postgres, issuer, collector, service, prometheus)


def publish(service: ServiceProcess, vault: VaultRig) -> None:
    """Two projects, and two versions whose wrapped keys are real."""
    with service.channel("admin/a") as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        for name in ("demo", "gone"):
            project = model_service_pb2.CreateProjectRequest(project_id=name)
            models.CreateProject(project, timeout=10)
        model = model_service_pb2.CreateModelRequest(parent=str(FACE.parent), model_id=FACE.model)
        models.CreateModel(model, timeout=10)
    list(fill(service.settings["DATABASE__URL"], vault, "modelkms-demo", FACE, 2))


def expressions() -> dict[str, str]:
    """What dashboard and rules ask, by where it stands."""
    found = {}
    for panel in panels():
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
    } - OF_WORKERS
    end = time.monotonic() + WAIT_S
    while missing := names - set(rig.prometheus.ask("label/__name__/values")):
        assert time.monotonic() < end, missing
        rig.look()
        time.sleep(0.5)


def test_every_panel_shows_something_on_a_running_stack(rig: Rig) -> None:
    shown = {
        where: expression.replace("$__rate_interval", "30s")
        for where, expression in expressions().items()
        if where.startswith("panel")
    }
    end = time.monotonic() + WAIT_S
    while empty := [where for where, ask in shown.items() if not rig.prometheus.query(ask)]:
        # Nothing is in flight between two calls: the one query that may be empty.
        if empty == ["panel Calls in flight 0"]:
            break
        assert time.monotonic() < end, empty
        rig.look()
        time.sleep(0.5)


def test_planted_faults_raise_exactly_the_alerts_they_should(rig: Rig) -> None:
    """Each is mended before the next; but for the last ones, whose alerts look minutes back."""
    service, prometheus = rig.service, rig.prometheus
    prometheus.expect()
    rig.look()

    service.write_policies(POLICY + "permit (principal")
    prometheus.expect("PolicyRefused")
    service.write_policies(POLICY)
    prometheus.expect()

    plant_tls_files(rig)
    plant_broken_glass(rig)

    rig.issuer.stop()
    prometheus.expect("IssuerKeysStale")
    rig.issuer.start()
    prometheus.expect()

    plant_lost_master_key(rig)
    plant_unshipped_checkpoints(rig)

    rig.postgres.stop()
    prometheus.expect("DatabaseUnreachable")
    rig.postgres.start_again()
    prometheus.expect()

    bao = rig.vault.server
    assert isinstance(bao, OpenBao)
    bao.kill()
    prometheus.expect("VaultUnreachable")
    bao.start_again()
    prometheus.expect()

    # From here on every alert stays.
    firing = ["AuditCopyIncomplete"]
    rig.collector.status = 400
    rig.look()
    prometheus.expect(*firing)

    firing.append("Overloaded")
    flood(rig)
    prometheus.expect(*firing)

    firing += ["Corruption", "LeaseErrorBudgetBurnsFast", "LeaseErrorBudgetBurnsSlowly"]
    exchange_wrapped_keys(rig)
    with service.channel("reader/a") as channel:
        for _ in range(3):  # a counter that begins at its first event has no rate yet
            with pytest.raises(grpc.RpcError):
                lease(channel, f"{FACE}/versions/2")
            time.sleep(1.5)
    prometheus.expect(*firing)

    # The audit log's disk is full: a refusal cannot be recorded.
    assert service.process is not None
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    with service.channel("reader/a") as channel, pytest.raises(grpc.RpcError):
        get_model(channel)
    firing.append("AuditFailing")
    prometheus.expect(*firing)

    service.signal(signal.SIGKILL)
    service.wait()
    prometheus.expect("Down", *firing)


def plant_tls_files(rig: Rig) -> None:
    service, prometheus = rig.service, rig.prometheus
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


def plant_broken_glass(rig: Rig) -> None:
    config = ("--config", str(rig.service.config_file))
    ana = f"spiffe://{TRUST_DOMAIN}/security/ana"
    before = set(rig.service.policies.iterdir())
    done = rig.service.run("break-glass", ana, "--reason", "all officers are ill", *config)
    assert done.returncode == 0, done.stderr
    rig.prometheus.expect("GlassBroken")
    for written in set(rig.service.policies.iterdir()) - before:
        written.unlink()
    rig.prometheus.expect()


def plant_lost_master_key(rig: Rig) -> None:
    transit = rig.vault.root.secrets.transit
    transit.update_key_configuration("modelkms-gone", deletion_allowed=True)
    transit.delete_key("modelkms-gone")
    rig.prometheus.expect("MasterKeyUnusable")
    rig.vault.make_key("modelkms-gone")
    rig.prometheus.expect()


def plant_unshipped_checkpoints(rig: Rig) -> None:
    place = rig.service.folder.parent / "checkpoints"
    away = place.rename(place.with_name("away"))
    rig.look()  # what is recorded is not proven
    rig.prometheus.expect("CheckpointsStale")
    shutil.move(away, place)
    rig.prometheus.expect()


def flood(rig: Rig) -> None:
    """Calls of one identity, twice as many a second as it may, for some scrapes."""
    refused: set[str] = set()
    with rig.service.channel("reader/flood") as channel:
        for _ in range(4):
            end = time.monotonic() + 1.0
            for _ in range(3 * CALLS_PER_S):
                try:
                    get_model(channel)
                except grpc.RpcError as error:
                    refused.add(refusal(error).reason)
            time.sleep(max(0.0, end - time.monotonic()))
    assert "QUOTA_EXCEEDED" in refused


def exchange_wrapped_keys(rig: Rig) -> None:
    """Of two versions, by hand: what F56 has."""
    with rig.postgres.connect(name_of(rig.service.settings["DATABASE__URL"])) as database:
        database.execute(
            "UPDATE versions SET wrapped_key = other.wrapped_key FROM versions other"
            " WHERE versions.number = 2 AND other.number = 1"
        )
