"""The audit log of a real service: full and failing disks, SIGKILL, SIGTERM (F61, F63, F64)."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import hvac
import pytest
from modelkms_api.v1 import model_service_pb2, model_service_pb2_grpc

from kms_service.adapters.audit_chain import segments
from kms_service.adapters.audit_reading import read_records, verify
from kms_service.development.openbao import OpenBao
from kms_service.development.vault_setup import RoleFiles, set_up
from kms_service.domain.audit import ChainHead, Checkpoint
from tests.support.certificates import TestAuthority
from tests.support.server import refusal
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess

pytestmark = pytest.mark.faults

TIMEOUT_S = 20.0


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
        tmp_path / "service", TestAuthority(TRUST_DOMAIN), bao.address, bao.ca_file, roles.service
    )
    yield service
    service.stop()


def chain(service: ServiceProcess) -> Path:
    return service.folder / "audit" / "main"


def get_project(channel: grpc.Channel) -> str:
    """The reason of the refusal; empty if there was none."""
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    try:
        stub.GetProject(
            model_service_pb2.GetProjectRequest(name="projects/demo"), timeout=TIMEOUT_S
        )
    except grpc.RpcError as error:
        told = refusal(error)
        if told.reason == "AUDIT_UNAVAILABLE":
            assert told.code is grpc.StatusCode.UNAVAILABLE
            assert told.retry_after_s
        return told.reason
    return ""


def create_project(channel: grpc.Channel) -> None:
    model_service_pb2_grpc.ModelServiceStub(channel).CreateProject(
        model_service_pb2.CreateProjectRequest(project_id="demo"), timeout=TIMEOUT_S
    )


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [dict(record) for record in read_records(folder) if record["event"] == "GetProject"]


IN_A_SMALL_FILE_SYSTEM = """
import os, subprocess, sys
folder, size, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
os.execv(command[0], command)
"""


def test_f61_a_full_disk_stops_answers_and_nothing_else(service: ServiceProcess) -> None:
    """The audit folder is a file system of 64 KiB, in a mount namespace of the service's own."""
    service.migrate()
    folder = service.folder / "audit"
    folder.mkdir()
    service.prefix = [
        *("unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c"),
        *(IN_A_SMALL_FILE_SYSTEM, str(folder), "64k"),
    ]
    service.start()
    assert service.process is not None
    seen = Path(f"/proc/{service.process.pid}/root") / folder.relative_to("/")
    answered, refused = 0, 0
    with service.channel("admin/anna") as channel:
        create_project(channel)
        for _ in range(400):
            reason = get_project(channel)
            if not reason:
                assert not refused, "answered after the disk was full"
                answered += 1
            else:
                assert reason == "AUDIT_UNAVAILABLE"
                refused += 1
            if refused > 20:
                break
        assert answered > 10
        assert refused > 20
        # Room again: it goes on by itself, after the last record that is durable.
        subprocess.run(
            [
                *("nsenter", f"--target={service.process.pid}", "--user", "--mount"),
                *("--preserve-credentials", "mount", "-o", "remount,size=1m", str(folder)),
            ],
            check=True,
        )
        end = time.monotonic() + TIMEOUT_S
        while get_project(channel):
            assert time.monotonic() < end
            time.sleep(0.1)
        (found,) = verify(seen).chains
        assert found.fault == ""
        assert len(recorded(seen / "main")) >= answered + 1


@pytest.mark.parametrize(
    ("call", "error"), [("fdatasync", "EIO"), ("write", "EROFS"), ("write", "EIO")]
)
def test_f61_a_failing_disk_is_not_believed(service: ServiceProcess, call: str, error: str) -> None:
    """`strace` makes every such call on the open segment fail; EROFS: its file system became
    read-only, as it does after errors."""
    service.migrate()
    service.start()
    assert service.process is not None
    with service.channel("admin/anna") as channel:
        create_project(channel)
        tracer = subprocess.Popen(
            [
                *("strace", "-f", "-q", "-p", str(service.process.pid)),
                *("-P", str(segments(chain(service))[-1]), "-e", f"trace={call}"),
                *("-e", f"inject={call}:error={error}", "-o", str(service.folder / "trace")),
            ]
        )
        try:
            end = time.monotonic() + TIMEOUT_S
            reasons: list[str] = []
            while "AUDIT_UNAVAILABLE" not in reasons:
                assert time.monotonic() < end, reasons
                reasons.append(get_project(channel))
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(TIMEOUT_S)
            # Another file is begun, and that is believed.
            assert [get_project(channel) for _ in range(3)] == [""] * 3
    assert service.stop() == 0
    (found,) = verify(service.folder / "audit").chains
    assert found.fault == ""
    # What could not be synced was answered with a refusal, and stands beside, not in the chain.
    assert len(recorded(chain(service))) >= reasons.count("") + 1
    if call == "fdatasync":  # of what was never written nothing is left
        assert list(chain(service).glob("*.torn-*"))


class Load:
    """Eight threads that ask without a pause, until the service goes away."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = model_service_pb2_grpc.ModelServiceStub(channel)
        self._lock = threading.Lock()
        self.answered = 0
        self.codes: set[grpc.StatusCode] = set()
        self._threads = [threading.Thread(target=self._ask) for _ in range(8)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        end = time.monotonic() + TIMEOUT_S
        while self.answered < 20:
            assert time.monotonic() < end
            time.sleep(0.01)
        return self

    def __exit__(self, *_error: object) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        request = model_service_pb2.GetProjectRequest(name="projects/demo")
        while True:
            try:
                self._stub.GetProject(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                with self._lock:
                    self.codes.add(refusal(error).code)
                return
            with self._lock:
                self.answered += 1


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.15])
def test_f63_killed_between_audit_and_reply(service: ServiceProcess, after_s: float) -> None:
    """Whatever was answered is in the log; the log holds; the next start goes on."""
    service.start()
    with service.channel("admin/anna") as channel:
        create_project(channel)
        with Load(channel) as load:
            time.sleep(after_s)
            service.signal(signal.SIGKILL)
            assert service.wait() == -signal.SIGKILL
    # A torn last line, as a crash of the machine leaves it.
    last = [path for path in segments(chain(service)) if path.stat().st_size][-1]
    with last.open("ab") as file:
        file.write(last.read_bytes().splitlines()[-1][:50])
    service.port_file.unlink()
    service.start()
    assert service.stop() == 0
    (found,) = verify(service.folder / "audit").chains
    assert found.fault == ""
    assert len(recorded(chain(service))) >= load.answered
    events = [record["event"] for record in read_records(chain(service))]
    assert events.count("audit_tail_set_aside") == 1
    assert events.count("service_started") == 2
    assert events.count("service_stopped") == 1


def test_f64_sigterm_under_load_loses_nothing(service: ServiceProcess) -> None:
    """Calls in flight end well, later ones find nobody, the log is whole and proven to its end."""
    kept = service.folder / "checkpoints"
    service.settings["AUDIT__CHECKPOINTS__FOLDER"] = str(kept)
    service.start()
    with service.channel("admin/anna") as channel:
        create_project(channel)
        with Load(channel) as load:
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
    assert load.codes <= {grpc.StatusCode.UNAVAILABLE}
    records = list(read_records(chain(service)))
    assert records[-1]["event"] == "service_stopped"
    assert records[-1]["details"]["all_calls_ended"] == "yes"
    assert len(recorded(chain(service))) >= load.answered
    newest = max(kept.glob("*.note")).read_text().split("\n\n")[0] + "\n"
    (head,) = Checkpoint.parse(newest).heads
    # The checkpoint comes after the last record.
    assert head == ChainHead("main", len(records), records[-1]["hash"])


def test_f63_two_services_do_not_share_a_chain(service: ServiceProcess, tmp_path: Path) -> None:
    service.start()
    other = ServiceProcess(
        tmp_path / "other",
        service.authority,
        service.vault_address,
        service.vault_ca_file,
        service.role,
        {"AUDIT__FOLDER": str(service.folder / "audit")},
    )
    other.migrate()
    done = other.run("serve", "--config", str(other.config_file))
    assert done.returncode == 2
    assert "another process writes there" in done.stderr
    other.settings["AUDIT__CHAIN"] = "second"
    other.start()
    assert other.stop() == 0
    assert service.stop() == 0
    found = verify(service.folder / "audit")
    assert not found.faulty
    assert [report.chain for report in found.chains] == ["main", "second"]
