"""The service as a process: start, what refuses a start, reload, and the end (F64, F10, F18)."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import hvac
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelkms_api.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    key_transport_pb2,
    master_key_service_pb2,
    master_key_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    resources_pb2,
)

from kms_service.__main__ import main
from kms_service.bootstrap import build
from kms_service.development.openbao import OpenBao
from kms_service.development.vault_setup import RoleFiles, set_up
from kms_service.domain.errors import ConfigurationError
from kms_service.live_checks import live_checks
from kms_service.service import Service
from tests.support.certificates import TestAuthority
from tests.support.server import refusal
from tests.support.service_process import POLICY, TRUST_DOMAIN, ServiceProcess

TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao.start(tmp_path_factory.mktemp("bao"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def roles(bao: OpenBao, tmp_path_factory: pytest.TempPathFactory) -> RoleFiles:
    files = set_up(bao, tmp_path_factory.mktemp("roles"))
    officer = hvac.Client(url=bao.address, verify=str(bao.ca_file))
    officer.auth.approle.login(
        files.officer.role_id_file.read_text(), files.officer.secret_id_file.read_text()
    )
    officer.secrets.transit.create_key("modelkms-demo", derived=True, key_type="aes256-gcm96")
    return files


@pytest.fixture
def service(tmp_path: Path, bao: OpenBao, roles: RoleFiles) -> Iterator[ServiceProcess]:
    service = ServiceProcess(
        tmp_path / "service",
        TestAuthority(TRUST_DOMAIN),
        bao.address,
        bao.ca_file,
        roles.service,
    )
    yield service
    service.stop()


def models(channel: grpc.Channel) -> model_service_pb2_grpc.ModelServiceStub:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def create_project(channel: grpc.Channel, project: str = "demo") -> resources_pb2.Project:
    return models(channel).CreateProject(
        model_service_pb2.CreateProjectRequest(project_id=project), timeout=TIMEOUT_S
    )


def health(channel: grpc.Channel, name: str = "") -> str:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def eventually(ask: Callable[[], bool], within_s: float = TIMEOUT_S) -> bool:
    end = time.monotonic() + within_s
    while not ask():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def audit_events(service: ServiceProcess) -> list[str]:
    text = "".join(
        path.read_text() for path in sorted((service.folder / "audit").rglob("*")) if path.is_file()
    )
    return [event for event in ("service_started", "service_stopped") if event in text]


def refused_start(service: ServiceProcess) -> str:
    """What a start in this process says; nothing is left running."""
    with pytest.raises(ConfigurationError) as caught:
        started(service)
    return caught.value.message


def started(service: ServiceProcess) -> None:
    with serving(service):
        pass


@contextmanager
def serving(service: ServiceProcess) -> Iterator[Service]:
    """The service in this process, where a start costs milliseconds."""
    built = build(service.config())
    try:
        built.start()
        service.grpc_port, service.metrics_port = built.grpc_port, built.metrics_port
        yield built
    finally:
        built.stop(0)


def metric(service: ServiceProcess, line: str) -> bool:
    """Whether `/metrics` has this line."""
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return f"{line}\n" in answer.read().decode()


def test_it_serves_end_to_end(service: ServiceProcess) -> None:
    migrated = service.run("migrate", "--config", str(service.config_file))
    assert (migrated.returncode, migrated.stderr) == (0, "")
    service.start()
    with service.channel("admin/anna") as channel:
        assert health(channel) == "SERVING"
        assert (
            list(models(channel).ListProjects(model_service_pb2.ListProjectsRequest()).projects)
            == []
        )
        made = create_project(channel)
        assert (made.name, made.master_key) == ("projects/demo", "modelkms-demo")
        key = master_key_service_pb2_grpc.MasterKeyServiceStub(channel).GetMasterKey(
            master_key_service_pb2.GetMasterKeyRequest(name="projects/demo/masterKey"),
            timeout=TIMEOUT_S,
        )
        assert (key.vault_key, key.latest_version) == ("modelkms-demo", 1)
        with pytest.raises(grpc.RpcError) as caught:
            create_project(channel, "none")
        assert refusal(caught.value).reason == "MASTER_KEY_MISCONFIGURED"
    with service.channel("stranger") as channel, pytest.raises(grpc.RpcError) as caught:
        models(channel).GetProject(
            model_service_pb2.GetProjectRequest(name="projects/demo"), timeout=TIMEOUT_S
        )
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND_OR_DENIED")
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        metrics = answer.read().decode()
    assert 'modelkms_dependency_up{dependency="vault"} 1.0' in metrics
    assert "modelkms_ready 1.0" in metrics
    assert "modelkms_vault_token_ttl_seconds" in metrics
    assert service.stop() == 0
    assert audit_events(service) == ["service_started", "service_stopped"]
    assert not service.port_file.exists()
    for line in service.log.splitlines():
        assert json.loads(line)["event"]


def test_f64_sigterm_lets_calls_in_flight_end(service: ServiceProcess) -> None:
    service.start()
    ended: list[object] = []
    with service.channel("admin/anna") as channel, service.channel("admin/other") as other:
        create_project(channel)
        version = _new_version(channel)
        release = threading.Event()
        artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)

        def chunks() -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
            yield artifact_service_pb2.WriteArtifactRequest(version=version, data=bytes(1000))
            release.wait(TIMEOUT_S)
            yield artifact_service_pb2.WriteArtifactRequest(data=bytes(500))

        upload = artifacts.WriteArtifact.future(chunks(), timeout=TIMEOUT_S)
        assert eventually(lambda: (service.folder / "artifacts").is_dir())
        stub: Any = health_pb2_grpc.HealthStub(other)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        time.sleep(0.3)
        service.signal(signal.SIGTERM)
        # Readiness is off at once, new calls find no service …
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()

        def gone() -> bool:
            try:
                models(other).ListProjects(model_service_pb2.ListProjectsRequest(), timeout=2)
            except grpc.RpcError as error:
                return refusal(error).code is grpc.StatusCode.UNAVAILABLE
            return False

        assert eventually(gone)
        # … and what was in flight ends well.
        release.set()
        ended.append(upload.result(TIMEOUT_S).stored_bytes)
    assert ended == [1500]
    assert service.wait() == 0
    assert audit_events(service) == ["service_started", "service_stopped"]


def _new_version(channel: grpc.Channel) -> str:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = key_transport_pb2.ClientKey(
        suite=key_transport_pb2.KEY_TRANSPORT_SUITE_X25519_HKDF_SHA256_AES256GCM,
        public_key=X25519PrivateKey.generate().public_key().public_bytes_raw(),
        request_nonce=bytes(16),
    )
    created = models(channel).CreateVersion(
        model_service_pb2.CreateVersionRequest(
            parent="projects/demo/models/face",
            request_id="0191a0b0-0000-7000-8000-000000000000",
            client_key=key,
        ),
        timeout=TIMEOUT_S,
    )
    assert len(created.data_key.ciphertext) == 48
    return str(created.version.name)


def test_f64_what_does_not_end_in_the_grace_is_cancelled(service: ServiceProcess) -> None:
    service.settings["SERVER__SHUTDOWN_GRACE_S"] = "0.5"
    service.start()
    with service.channel("admin/anna") as channel:
        create_project(channel)
        version = _new_version(channel)
        never = threading.Event()

        def chunks() -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
            yield artifact_service_pb2.WriteArtifactRequest(version=version, data=bytes(1000))
            never.wait(TIMEOUT_S)

        upload = artifact_service_pb2_grpc.ArtifactServiceStub(channel).WriteArtifact.future(
            chunks(), timeout=TIMEOUT_S
        )
        time.sleep(0.3)
        service.signal(signal.SIGINT)
        started = time.monotonic()
        assert service.wait() == 0
        assert time.monotonic() - started < 5
        assert upload.exception(TIMEOUT_S) is not None
        never.set()
    assert audit_events(service) == ["service_started", "service_stopped"]


@pytest.mark.parametrize("which", ["server.listen", "metrics.listen"])
def test_port_in_use(service: ServiceProcess, which: str) -> None:
    service.migrate()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        service.settings[which.upper().replace(".", "__")] = address
        assert refused_start(service) == (
            f"{which}: cannot listen on {address}: the port is in use; "
            "stop the other process or choose another port"
        )
    assert audit_events(service) == []
    assert not service.port_file.exists()
    # The refused start has let go of everything: the next one succeeds.
    del service.settings[which.upper().replace(".", "__")]
    started(service)
    assert audit_events(service) == ["service_started", "service_stopped"]


def test_two_services_cannot_share_a_port(service: ServiceProcess, tmp_path: Path) -> None:
    service.migrate()
    second = ServiceProcess(
        tmp_path / "second",
        service.authority,
        service.vault_address,
        service.vault_ca_file,
        service.role,
    )
    second.migrate()
    with serving(service) as first:
        second.settings["SERVER__LISTEN"] = f"127.0.0.1:{first.grpc_port}"
        assert "the port is in use" in refused_start(second)


def test_configuration_with_an_unknown_field(service: ServiceProcess) -> None:
    service.config_file.write_text(
        service.config_file.read_text().replace("port_file", "prot_file")
    )
    service.settings["SERVER__LISTNE"] = "127.0.0.1:0"
    done = service.run("serve", "--config", str(service.config_file))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {service.config_file}: environment variable MODELKMS_SERVER__SERVER__LISTNE: "
        "no such setting; unset it, or correct its name\n"
        f"error: {service.config_file}: server.prot_file: no such setting; remove it, "
        "or correct its name\n"
    )


def test_database_that_was_never_migrated(service: ServiceProcess) -> None:
    assert refused_start(service) == (
        "database.url: the schema is empty; run `modelkms-server migrate`"
    )


def test_f02_no_start_without_tls(service: ServiceProcess) -> None:
    service.migrate()
    key_file = service.tls_folder / "key.pem"
    key_file.unlink()
    assert refused_start(service) == (
        f"server.key_file: cannot read {key_file}: No such file or directory"
    )


@pytest.mark.parametrize(
    "policy",
    ["", "permit (principal, action, resource", "permit (principal, action, resource);"],
    ids=["none", "syntax error", "everyone"],
)
def test_f18_no_start_without_a_good_policy_set(service: ServiceProcess, policy: str) -> None:
    service.migrate()
    service.write_policies(policy)
    assert refused_start(service).startswith("policy.folder: ")


def test_vault_away_is_not_ready_but_alive(service: ServiceProcess) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        service.settings["VAULT__ADDRESS"] = f"https://127.0.0.1:{silent.getsockname()[1]}"
        service.migrate()
        with serving(service), service.channel("admin/anna") as channel:
            assert health(channel) == "NOT_SERVING"
            assert health(channel, "modelkms_api.v1.KeyService") == "NOT_SERVING"
            assert health(channel, "modelkms_api.v1.ModelService") == "SERVING"
            models(channel).ListProjects(model_service_pb2.ListProjectsRequest())
            with pytest.raises(grpc.RpcError) as caught:
                create_project(channel)
        told = refusal(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "VAULT_UNAVAILABLE")
        assert told.retry_after_s
        done = service.run("check-config", "--live", "--config", str(service.config_file))
    assert done.returncode == 5
    assert "VAULT_UNAVAILABLE" in done.stderr


def fetch(service: ServiceProcess, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{service.metrics_port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_status_tells_how_a_running_service_is(
    service: ServiceProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("status", "--config", str(service.config_file))
    code, _, told = command(monkeypatch, capsys, *ask)
    assert code == 5
    assert told.startswith("error: no service runs: its port file is not there")
    service.migrate()
    with serving(service):
        code, out, _ = command(monkeypatch, capsys, *ask)
        records = 1 + len(list(service.policies.iterdir()))  # the start, and by which policies
        assert (code, out) == (0, f"SERVING 0 leases live; audit record {records}\n")
        code, out, _ = command(monkeypatch, capsys, *ask, "--json")
        assert json.loads(out)["audit"] == {
            "chain": "main",
            "records": records,
            "checkpoint": "",
        }
        assert fetch(service, "/readyz") == (200, "ready\n")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        service.settings["VAULT__ADDRESS"] = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with serving(service):
            code, out, _ = command(monkeypatch, capsys, *ask)
            assert code == 5
            assert out.startswith("DEGRADED vault unreachable ")
            assert out.endswith("runbook docs/runbooks/vault-unreachable.md\n")
            assert fetch(service, "/livez") == (200, "alive\n")
            assert fetch(service, "/readyz") == (503, "vault: VAULT_UNAVAILABLE\n")


def test_check_config_live_finds_a_role_that_may_too_much_or_too_little(
    service: ServiceProcess, roles: RoleFiles
) -> None:
    service.settings["VAULT__ROLE_ID_FILE"] = str(roles.officer.role_id_file)
    service.settings["VAULT__SECRET_ID_FILE"] = str(roles.officer.secret_id_file)
    check = dict(live_checks(service.config()))["Vault: tombstones; what the service may, what not"]
    with pytest.raises(ConfigurationError) as caught:
        check()
    key = "modelkms-no-such-project-live-check"
    assert f"POST transit/decrypt/{key} is refused, and needed" in caught.value.message
    assert f"POST transit/keys/{key}/rotate is allowed, and must not be" in caught.value.message


def test_check_config_live(service: ServiceProcess) -> None:
    service.settings["AUDIT__CHECKPOINTS__FOLDER"] = str(service.folder / "checkpoints")
    service.migrate()
    for _, check in live_checks(service.config()):
        check()
    (service.tls_folder / "ca.pem").write_text("")
    name, check = next(live_checks(service.config()))
    with pytest.raises(ConfigurationError, match=r"server\.client_ca_file: holds no PEM"):
        check()
    assert name == "certificate, key and client CA"


GUEST = """
@id("guest")
permit (principal, action == ModelKMS::Action::"GetProject", resource)
when { principal.path like "/guest/*" };
"""


def may_see(channel: grpc.Channel) -> bool:
    try:
        models(channel).GetProject(
            model_service_pb2.GetProjectRequest(name="projects/demo"), timeout=TIMEOUT_S
        )
    except grpc.RpcError as error:
        if refusal(error).reason == "MODEL_NOT_FOUND_OR_DENIED":
            return False
        raise
    return True


def test_f18_policies_reload_and_a_bad_set_keeps_the_last_good(service: ServiceProcess) -> None:
    service.migrate()
    with (
        serving(service),
        service.channel("admin/anna") as admin,
        service.channel("guest/g") as guest,
    ):
        create_project(admin)
        assert not may_see(guest)
        service.write_policies(POLICY + GUEST)
        assert eventually(lambda: may_see(guest))
        assert metric(service, "modelkms_policies_current 1.0")
        service.write_policies("permit (principal, action, resource")
        assert eventually(lambda: metric(service, "modelkms_policies_current 0.0"))
        assert may_see(guest)
        service.write_policies(POLICY)
        assert eventually(lambda: not may_see(guest))


def test_f68_a_set_for_everyone_or_no_one_is_refused_and_raises_an_alarm(
    service: ServiceProcess,
) -> None:
    service.migrate()
    everyone = '@id("all") permit (principal, action, resource);'
    no_one = POLICY + '@id("none") forbid (principal, action, resource);'
    with (
        serving(service),
        service.channel("admin/anna") as admin,
        service.channel("guest/g") as guest,
    ):
        create_project(admin)
        for bad in (everyone, no_one):
            service.write_policies(bad)
            assert eventually(lambda: metric(service, "modelkms_policies_current 0.0"))
            assert may_see(admin)
            assert not may_see(guest)
            service.write_policies(POLICY)
            assert eventually(lambda: metric(service, "modelkms_policies_current 1.0"))
        assert metric(service, 'modelkms_policy_loads_total{result="refused"} 2.0')


def test_sighup_reads_the_policies_again(service: ServiceProcess) -> None:
    service.start()
    service.signal(signal.SIGHUP)
    assert eventually(lambda: "policies_reloaded" in service.log)
    service.write_policies("permit (principal, action, resource")
    service.signal(signal.SIGHUP)
    assert eventually(lambda: "policy_reload_refused" in service.log)
    with service.channel("admin/anna") as channel:
        assert health(channel) == "SERVING"


def test_f10_certificate_reload_without_restart(service: ServiceProcess) -> None:
    service.migrate()
    with serving(service):
        successor = TestAuthority(TRUST_DOMAIN)
        successor.server().write(service.tls_folder)
        with service.channel(successor.client("admin/anna")) as channel:
            assert health(channel) == "SERVING"
        with service.channel("admin/anna") as channel, pytest.raises(grpc.RpcError) as caught:
            health(channel)
    assert refusal(caught.value).code is grpc.StatusCode.UNAVAILABLE


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """`modelkms-server` in this process: exit code, standard output, standard error."""
    monkeypatch.setattr("sys.argv", ["modelkms-server", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def test_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(monkeypatch, capsys, "--version") == (0, "modelkms-server 0.1.0\n", "")
    code, out, _ = command(monkeypatch, capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("serve", "migrate", "check-config", "audit", "dev"))
    code, _, told = command(monkeypatch, capsys, "serve")
    assert code == 2
    assert told.startswith("error: Missing option '--config'")
    assert "hint: " in told
    missing = str(tmp_path / "none")
    code, _, told = command(monkeypatch, capsys, "check-config", "--config", missing)
    assert code == 2
    assert told == f"error: {missing}: cannot be read: No such file or directory; {GIVE}\n"


GIVE = "give a file with --config"


def test_audit_verify(
    service: ServiceProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.migrate()
    started(service)
    folder = service.folder / "audit"
    capsys.readouterr()
    code, out, _ = command(monkeypatch, capsys, "audit", "verify", str(folder))
    assert code == 0
    records = 2 + len(list(service.policies.iterdir()))
    assert out.startswith(f"main: whole to record {records}")
    (segment,) = [path for path in (folder / "main").iterdir() if path.stat().st_size]
    segment.write_bytes(segment.read_bytes().replace(b"service_stopped", b"service_storred"))
    code, _, told = command(monkeypatch, capsys, "audit", "verify", str(folder))
    assert code == 6
    assert told.startswith(f"error: main: record {records} ")
