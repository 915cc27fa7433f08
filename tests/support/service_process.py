"""The whole service as a process of its own, on real parts: `python -m kms_service`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from kms_service.config import Config, load
from kms_service.development.vault_setup import AppRoleFiles
from kms_service.parts import migrate_database
from tests.support.certificates import Issued, TestAuthority
from tests.support.planted_secrets import written
from tests.support.service_secrets import plant_data_keys_of

TRUST_DOMAIN = "test.example"
START_TIMEOUT_S = 30.0

POLICY = """
@id("admin") @lease_ttl("1h") @max_lease_ttl("12h")
permit (principal, action, resource) when { principal.path like "/admin/*" };
@id("reader")
permit (principal, action in ModelKMS::Action::"Read", resource)
when { principal.path like "/reader/*" };
"""
CANARIES = {
    "cases": [
        {
            "principal": f"spiffe://{TRUST_DOMAIN}/{path}",
            "action": action,
            "project": "demo",
            "model": "face",
            "permitted": permitted,
        }
        for path, action, permitted in (
            ("admin/a", "CreateVersion", True),
            ("reader/a", "LeaseDataKey", True),
            ("reader/a", "CreateVersion", False),
            ("stranger", "LeaseDataKey", False),
        )
    ]
}


@dataclass
class ServiceProcess:
    """One configured service in `folder`.

    Attributes:
        vault_address: need not answer.
        role: what it logs in to Vault with.
        settings: further environment overrides, `SECTION__FIELD` to value.
        prefix: command that starts the service's own.
    """

    folder: Path
    authority: TestAuthority
    vault_address: str
    vault_ca_file: Path
    role: AppRoleFiles
    settings: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    grpc_port: int = 0
    metrics_port: int = 0
    watch_port: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority.server().write(self.tls_folder)
        self.policies.mkdir()
        self.write_policies(POLICY)
        sections: dict[str, dict[str, Any]] = {
            "server": {
                "listen": "127.0.0.1:0",
                "certificate_file": "tls/certificate.pem",
                "key_file": "tls/key.pem",
                "client_ca_file": "tls/ca.pem",
                "trust_domains": [TRUST_DOMAIN],
                "port_file": "ports.json",
                "shutdown_grace_s": 5.0,
            },
            "metrics": {"listen": "127.0.0.1:0"},
            "vault": {
                "address": self.vault_address,
                "ca_file": str(self.vault_ca_file),
                "role_id_file": str(self.role.role_id_file),
                "secret_id_file": str(self.role.secret_id_file),
            },
            "store": {"kind": "local", "folder": "artifacts"},
            "policy": {"folder": "policies"},
            "audit": {"folder": "audit"},
            "log": {"level": "debug"},
        }
        self.config_file.write_text(
            "\n".join(
                f"[{name}]\n"
                + "\n".join(f"{key} = {json.dumps(value)}" for key, value in section.items())
                for name, section in sections.items()
            )
        )

    @property
    def config_file(self) -> Path:
        return self.folder / "server.toml"

    @property
    def tls_folder(self) -> Path:
        return self.folder / "tls"

    @property
    def policies(self) -> Path:
        return self.folder / "policies"

    @property
    def port_file(self) -> Path:
        return self.folder / "ports.json"

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text()

    def write_policies(self, text: str) -> None:
        (self.policies / "canaries.json").write_text(json.dumps(CANARIES))
        (self.policies / "policy.cedar").write_text(text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of `modelkms-server` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "kms_service", *arguments],
            capture_output=True,
            text=True,
            env=self._environment(),
            timeout=START_TIMEOUT_S,
            check=False,
        )

    def config(self) -> Config:
        """As the process would load it."""
        return load(self.config_file, self._overrides())

    def migrate(self) -> None:
        """In this process: starting another one costs a second."""
        migrate_database(self.config())

    def start(self) -> None:
        """Migrate, serve, wait until it answers."""
        self.migrate()
        self.port_file.unlink(missing_ok=True)
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.prefix, sys.executable, "-m", "kms_service", "serve"),
                    *("--config", str(self.config_file)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
            )
        end = time.monotonic() + START_TIMEOUT_S
        while not self.port_file.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.02)
        ports = json.loads(self.port_file.read_text())
        self.grpc_port, self.metrics_port = ports["grpc"], ports["metrics"]
        self.watch_port = ports.get("watch", 0)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        assert self.process is not None
        return self.process.wait(START_TIMEOUT_S)

    def stop(self) -> int:
        """SIGTERM; the exit code. Safe to call twice."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self._tell_the_secret_scan()
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def channel(self, identity: Issued | str) -> grpc.Channel:
        """A channel of an identity; text is a path in the trust domain."""
        if isinstance(identity, str):
            identity = self.authority.client(identity)
        return identity.channel(self.grpc_port)

    def _tell_the_secret_scan(self) -> None:
        """What it shows to whoever scrapes it, and which data keys it had in hand."""
        for page in ("metrics", "status"):
            url = f"http://127.0.0.1:{self.metrics_port}/{page}"
            with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                written(f"/{page} of {self.folder}", answer.read())
        plant_data_keys_of(self.config())

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if "MODELKMS" not in name}
        return own | self._overrides()

    def _overrides(self) -> dict[str, str]:
        return {f"MODELKMS_SERVER__{name}": value for name, value in self.settings.items()}
