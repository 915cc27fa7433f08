"""The development stack: OpenBao, the service, a CA with identities and profiles, in one folder.

Everything is what production has: verified TLS, mTLS identities, AppRole, the shipped Vault
policies, Cedar policies. Only the issuer of the certificates is a toy.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import modelkms
from modelkms.officer import Officer

from kms_service.development.authority import TRUST_DOMAIN, DevelopmentAuthority, write_private
from kms_service.development.openbao import OpenBao, RoleFiles, VaultServer, set_up
from kms_service.development.process import ChildProcess
from kms_service.domain.errors import ConfigurationError

IDENTITIES = ("developer", "publisher", "reader", "stranger", "security", "witness")
DEFAULT_IDENTITY = "developer"
PROJECT = "demo"
_START_TIMEOUT_S = 60.0


class StackInUse(ConfigurationError):
    """Another development stack holds the folder."""


@dataclass(frozen=True, slots=True)
class StackPaths:
    """Where things lie under `--dir`."""

    root: Path

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

    @property
    def service(self) -> Path:
        return self.root / "service"

    @property
    def artifacts(self) -> Path:
        return self.service / "artifacts"

    @property
    def audit(self) -> Path:
        return self.service / "audit"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def config_file(self) -> Path:
        return self.service / "modelkms-server.toml"

    def profile(self, identity: str) -> Path:
        return self.profiles / f"{identity}.toml"


class DevelopmentStack:
    """Starts and stops it all. State is kept between runs; ports are chosen anew unless given."""

    def __init__(
        self,
        directory: Path,
        *,
        listen: str = "127.0.0.1:0",
        metrics_listen: str = "127.0.0.1:0",
        start_vault: Callable[[Path], VaultServer] = OpenBao.start,
        server_module: str = "kms_service",
        database_url: str = "sqlite:///modelkms.db",
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.paths = StackPaths(directory.absolute())
        self._listen = listen
        self._metrics_listen = metrics_listen
        self._watch_listen = "127.0.0.1:0"
        self._start_vault = start_vault
        self._server_module = server_module
        self._database_url = database_url
        self._tell = tell
        self._lock: int | None = None
        self._vault: VaultServer | None = None
        self._service: ChildProcess | None = None
        self.grpc_port = 0
        self.metrics_port = 0
        self.watch_port = 0

    @property
    def vault(self) -> VaultServer:
        if self._vault is None:
            raise RuntimeError("the stack is not started")
        return self._vault

    @property
    def service(self) -> ChildProcess:
        if self._service is None:
            raise RuntimeError("the stack is not started")
        return self._service

    def start(self) -> None:
        """Start OpenBao, then the service; make CA, identities, profiles and the project.

        Raises:
            StackInUse: another stack runs in this folder.
            ChildFailed: a part did not come up; the message has the tail of its log.
        """
        self._claim_folder()
        try:
            authority = DevelopmentAuthority(self.paths.root / "authority")
            self._tell("starting OpenBao (real server, own storage, TLS) …")
            self._vault = self._start_vault(self.paths.root / "vault")
            roles = set_up(self._vault, self.paths.root / "vault-roles")
            self._write_service_config(authority, roles)
            self._tell("starting the ModelKMS service (mTLS, Cedar, SQLite, audit log) …")
            self.start_service()
            self._write_profiles(authority, roles)
            self._ensure_project()
        except BaseException:
            self.stop()
            raise

    def restart_service(self) -> None:
        """Stop the service, if it still runs, and serve again on the same ports."""
        self.service.stop()
        self._listen = f"127.0.0.1:{self.grpc_port}"
        self._metrics_listen = f"127.0.0.1:{self.metrics_port}"
        self._watch_listen = f"127.0.0.1:{self.watch_port}"
        self.start_service()

    def start_service(self) -> None:
        """Migrate, serve, and wait until it listens."""
        port_file = self.paths.service / "ports.json"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", self._server_module]
        config = ["--config", str(self.paths.config_file)]
        log_file = self.paths.service / "service.log"
        environment = {
            **_environment_without_overrides(),
            "MODELKMS_SERVER__SERVER__LISTEN": self._listen,
            "MODELKMS_SERVER__METRICS__LISTEN": self._metrics_listen,
            "MODELKMS_SERVER__WATCH__LISTEN": self._watch_listen,
        }
        migrate = ChildProcess(
            "modelkms-server migrate",
            [*command, "migrate", *config],
            log_file=log_file,
            environment=environment,
        )
        migrate.wait_until_done(_START_TIMEOUT_S)
        self._service = ChildProcess(
            "modelkms-server serve",
            [*command, "serve", *config],
            log_file=log_file,
            environment=environment,
        )
        self._service.wait_until(port_file.exists, _START_TIMEOUT_S)
        ports = json.loads(port_file.read_text())
        self.grpc_port, self.metrics_port = ports["grpc"], ports["metrics"]
        self.watch_port = ports["watch"]

    def stop(self) -> None:
        """Stop what runs, in order; free the folder. Safe to call twice."""
        if self._service is not None:
            self._service.stop()
            self._service = None
        if self._vault is not None:
            self._vault.stop()
            self._vault = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _claim_folder(self) -> None:
        root = self.paths.root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise StackInUse(
                f"another development stack runs in {root}; stop it, or choose another --dir"
            ) from None
        (root / ".gitignore").write_text("*\n")

    def _write_service_config(self, authority: DevelopmentAuthority, roles: RoleFiles) -> None:
        paths = self.paths
        certificate_file, key_file = authority.issue_server(paths.service / "tls")
        policies = paths.service / "policies"
        if not policies.exists():  # once: they are the developer's to edit
            shutil.copytree(Path(__file__).with_name("policies"), policies)
        write_private(
            paths.config_file,
            _toml(
                {
                    "server": {
                        "listen": self._listen,
                        "certificate_file": certificate_file,
                        "key_file": key_file,
                        "client_ca_file": authority.ca_file,
                        "trust_domains": [TRUST_DOMAIN],
                        "port_file": paths.service / "ports.json",
                    },
                    "metrics": {"listen": self._metrics_listen},
                    "vault": {
                        "address": self.vault.address,
                        "ca_file": self.vault.ca_file,
                        "role_id_file": roles.service.role_id_file,
                        "secret_id_file": roles.service.secret_id_file,
                    },
                    "database": {"url": self._database_url},
                    "store": {"kind": "local", "folder": paths.artifacts},
                    "policy": {"folder": policies},
                    "audit": {"folder": paths.audit},
                    "audit.checkpoints": {
                        "kind": "local",
                        "folder": paths.checkpoints,
                        "origin": "modelkms-dev/audit",
                    },
                }
            ),
        )

    def _write_profiles(self, authority: DevelopmentAuthority, roles: RoleFiles) -> None:
        for identity in IDENTITIES:
            folder = self.paths.root / "identities" / identity
            certificate_file, key_file = authority.issue_identity(folder, identity)
            profile: dict[str, Any] = {
                "endpoint": f"localhost:{self.grpc_port}",
                "watch_endpoint": f"localhost:{self.watch_port}",
                "ca_file": authority.ca_file,
                "certificate_file": certificate_file,
                "key_file": key_file,
                "project": PROJECT,
                "cache_dir": self.paths.root / "cache" / identity,
                "state_dir": self.paths.root / "state" / identity,
            }
            if identity in ("security", "witness"):
                profile["vault"] = {
                    "address": self.vault.address,
                    "ca_file": self.vault.ca_file,
                    "role_id_file": roles.officer.role_id_file,
                    "secret_id_file": roles.officer.secret_id_file,
                }
            write_private(self.paths.profile(identity), _toml(profile))

    def _ensure_project(self) -> None:
        """The security identity makes the master key under its own Vault login, then the project.

        Its answer is also the proof that everything answers.
        """
        with modelkms.connect(self.paths.profile("security")) as client:
            if PROJECT in {project.id for project in client.list_projects()}:
                return
            with Officer.from_profile(client.profile) as officer:
                officer.ensure_master_key(PROJECT)
            client.create_project(PROJECT)


def run(
    directory: Path, *, listen: str = "127.0.0.1:0", metrics_listen: str = "127.0.0.1:0"
) -> None:
    """`modelkms-server dev`: start, print how to use it, `ready`, and wait for Ctrl-C.

    Raises: as `DevelopmentStack.start`; also ChildFailed if a part ends later.
    """

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    signal.signal(signal.SIGTERM, _interrupt)
    stack = DevelopmentStack(directory, listen=listen, metrics_listen=metrics_listen, tell=tell)
    try:
        with stack:
            tell(f"service   localhost:{stack.grpc_port}  (mTLS; logs in {stack.paths.service})")
            tell(f"metrics   http://127.0.0.1:{stack.metrics_port}/metrics")
            tell(f"vault     {stack.vault.address}  (OpenBao; its root token is revoked)")
            tell(f"profiles  {', '.join(IDENTITIES)}  in {stack.paths.profiles}")
            tell("In a second terminal:")
            tell(f"  export MODELKMS_PROFILE={stack.paths.profile(DEFAULT_IDENTITY)}")
            tell(f"  modelkms push model.onnx {PROJECT}/model")
            tell("ready")
            stack.service.wait_until_ended()
    except KeyboardInterrupt:
        tell("stopped")


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _environment_without_overrides() -> dict[str, str]:
    """Ours, less any MODELKMS_…: the stack's files say all."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MODELKMS_")}


def _toml(table: dict[str, Any]) -> str:
    """Scalars, lists of strings and one level of sections; JSON's strings are TOML's."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [
        f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
        for key, value in plain.items()
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", _toml(value)]
    return "\n".join(lines) + "\n"
