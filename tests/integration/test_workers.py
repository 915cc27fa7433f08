"""`serve --workers N`: one port, several processes, one database."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.certificates import TestAuthority
from tests.support.postgresql import PostgresServer
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess
from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

TIMEOUT_S = 30.0


@pytest.fixture
def service(tmp_path: Path, vault_of: Callable[[str], VaultRig]) -> Iterator[ServiceProcess]:
    vault = vault_of("openbao")
    service = ServiceProcess(
        tmp_path / "service",
        TestAuthority(TRUST_DOMAIN),
        vault.server.address,
        vault.server.ca_file,
        vault.roles.service,
        settings={"SERVER__WORKERS": "2", "LOG__LEVEL": "info"},
    )
    yield service
    service.stop()


def test_sqlite_says_that_it_serves_one_process(service: ServiceProcess) -> None:
    service.migrate()
    done = service.run("serve", "--config", str(service.config_file))
    assert done.returncode == 2
    assert "server.workers: SQLite serves one process" in done.stderr


@pytest.mark.faults
def test_workers_share_the_port_and_outlive_each_other(
    service: ServiceProcess, postgres: PostgresServer
) -> None:
    service.settings["DATABASE__URL"] = postgres.new_database()
    service.settings["AUDIT__CHAIN"] = f"c-{secrets.token_hex(2)}"
    service.start()
    assert _ask(service, 'modelkms_ready{worker="0"} 1.0')
    assert _ask(service, 'modelkms_ready{worker="1"} 1.0')
    served = _until_both_served(service)
    assert all(count > 0 for count in served.values())

    with urllib.request.urlopen(
        f"http://127.0.0.1:{service.metrics_port}/status", timeout=TIMEOUT_S
    ) as answer:
        status = json.load(answer)
    assert (status["state"], status["troubles"]) == ("SERVING", [])
    assert [chain[-2:] for chain in status["audit"]["chain"].split()] == ["-0", "-1"]

    cores = {_core_of(pid) for pid in _workers(service)}
    assert len(cores) == min(2, len(os.sched_getaffinity(0)))

    killed = _workers(service)[0]
    os.kill(killed, signal.SIGKILL)
    end = time.monotonic() + TIMEOUT_S
    while killed in _workers(service) or len(_workers(service)) < 2:
        assert time.monotonic() < end, service.log
        assert _healthy(service)  # the other one answers
    while not _ask(service, 'modelkms_worker_up{worker="0"} 1.0'):
        assert time.monotonic() < end, service.log

    assert service.stop() == 0
    assert not service.port_file.exists()
    chains = sorted(path.name for path in (service.folder / "audit").iterdir() if path.is_dir())
    assert [chain[-2:] for chain in chains] == ["-0", "-1"]
    for chain in chains:
        done = service.run("audit", "verify", str(service.folder / "audit" / chain))
        assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in service.log.splitlines()]
    assert events.count("service_stopped") == 2
    assert "worker_ended" in events


def _until_both_served(service: ServiceProcess) -> dict[str, int]:
    """Calls over connections of their own until each worker had some."""
    end = time.monotonic() + TIMEOUT_S
    served: dict[str, int] = {}
    while len(served) < 2:
        assert time.monotonic() < end, served
        assert _healthy(service)
        pattern = r'modelkms_rpc_requests_total\{[^}]*Health/Check[^}]*worker="(\d)"\} ([0-9.]+)'
        served = {
            worker: int(float(count))
            for worker, count in re.findall(pattern, _metrics(service))
            if float(count)
        }
    return served


def _healthy(service: ServiceProcess) -> bool:
    with service.channel("reader/a") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _workers(service: ServiceProcess) -> list[int]:
    assert service.process is not None
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def _core_of(pid: int) -> int:
    (core,) = os.sched_getaffinity(pid)
    return core


def _ask(service: ServiceProcess, line: str) -> bool:
    return line in _metrics(service)


def _metrics(service: ServiceProcess) -> str:
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())
