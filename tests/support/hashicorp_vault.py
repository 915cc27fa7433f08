"""HashiCorp Vault, built once from its Go module and kept outside the tree.

`python -m tests.support.hashicorp_vault build` builds it (about 5 minutes on 2 cores).
"""

from __future__ import annotations

import fcntl
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import hvac
import requests

from kms_service.development.authority import DevelopmentAuthority, write_private
from kms_service.development.process import ChildProcess
from tests.support.tools import cache_folder, go_binary, go_environment

VERSION = "1.21.2"
_MODULE = Path(__file__).with_name("vault-build")
_START_TIMEOUT_S = 60.0


def vault_binary() -> Path:
    """The built binary; builds it if it is not there. Safe when several processes ask."""
    folder = cache_folder() / f"vault-{VERSION}"
    binary = folder / "vault"
    if binary.exists():
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            temporary = folder / "vault.new"
            subprocess.run(
                [
                    *(str(go_binary()), "build", "-mod=readonly", "-tags", "minimal"),
                    *("-o", str(temporary), "github.com/hashicorp/vault"),
                ],
                cwd=_MODULE,
                env={**go_environment(), "CGO_ENABLED": "0"},
                check=True,
            )
            temporary.replace(binary)
    return binary


class HashicorpVault:
    """One server with the interface of `kms_service.development.openbao.OpenBao`."""

    def __init__(self, folder: Path, port: int, cluster_port: int) -> None:
        self._folder = folder
        self.port = port
        self._cluster_port = cluster_port
        self.address = f"https://127.0.0.1:{port}"
        self.ca_file = folder / "tls-authority" / "ca.pem"
        self.version = ""
        self._process = self._launch()

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start a server with raft storage in `folder`; initialise it on the first start."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        server = cls(folder, _free_port(), _free_port())
        server._until_ready()
        return server

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        self._process.kill()

    def start_again(self) -> None:
        self._process = self._launch()
        self._until_ready()

    def root_token(self) -> str | None:
        file = self._root_token_file
        return file.read_text() if file.exists() else None

    def forget_root_token(self) -> None:
        self._root_token_file.unlink()

    def unseal(self) -> None:
        """Unseal with the key share kept from initialisation."""
        client = hvac.Client(url=self.address, verify=str(self.ca_file))
        client.sys.submit_unseal_key((self._folder / "unseal-key").read_text())

    @property
    def _root_token_file(self) -> Path:
        return self._folder / "root-token"

    def _launch(self) -> ChildProcess:
        folder = self._folder
        certificate_file, key_file = DevelopmentAuthority(folder / "tls-authority").issue_server(
            folder / "tls"
        )
        (folder / "raft").mkdir(exist_ok=True, mode=0o700)
        config = {
            "storage": {
                "raft": {
                    "path": str(folder / "raft"),
                    "node_id": "tests",
                    "performance_multiplier": "1",
                }
            },
            "listener": {
                "tcp": {
                    "address": f"127.0.0.1:{self.port}",
                    "cluster_address": f"127.0.0.1:{self._cluster_port}",
                    "tls_cert_file": str(certificate_file),
                    "tls_key_file": str(key_file),
                }
            },
            "api_addr": self.address,
            "cluster_addr": f"https://127.0.0.1:{self._cluster_port}",
            "disable_mlock": True,
            "ui": False,
        }
        config_file = folder / "vault.json"
        write_private(config_file, json.dumps(config))
        return ChildProcess(
            "HashiCorp Vault",
            [str(vault_binary()), "server", f"-config={config_file}"],
            log_file=folder / "vault.log",
        )

    def _until_ready(self) -> None:
        self._process.wait_until(lambda: self._health() is not None, _START_TIMEOUT_S)
        client = hvac.Client(url=self.address, verify=str(self.ca_file))
        if not (self._health() or {})["initialized"]:
            made = client.sys.initialize(secret_shares=1, secret_threshold=1)
            write_private(self._folder / "unseal-key", made["keys"][0])
            write_private(self._root_token_file, made["root_token"])
        self.unseal()
        self._process.wait_until(self._active, _START_TIMEOUT_S)

    def _active(self) -> bool:
        health = self._health()
        if health is None or health["sealed"] or health["standby"]:
            return False
        self.version = health["version"]
        return True

    def _health(self) -> dict[str, Any] | None:
        try:
            return dict(
                requests.get(
                    f"{self.address}/v1/sys/health", verify=str(self.ca_file), timeout=2
                ).json()
            )
        except (requests.RequestException, ValueError):
            return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    if sys.argv[1:] != ["build"]:
        sys.stderr.write("usage: python -m tests.support.hashicorp_vault build\n")
        return 2
    began = time.monotonic()
    binary = vault_binary()
    sys.stdout.write(f"{binary} ({time.monotonic() - began:.0f} s)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
