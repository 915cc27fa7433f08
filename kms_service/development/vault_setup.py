"""Prepares a fresh Vault or OpenBao for ModelKMS: transit, AppRoles, the shipped policies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import hvac
import hvac.exceptions

from kms_service.development.authority import write_private

KV_MOUNT = "modelkms"
_KV_READY_S = 30.0
ROLES = ("service", "officer", "auditor")
CHECKPOINT_KEY = "audit-modelkms"
_LOGIN_TTL = "1h"
_LOGIN_MAX_TTL = "24h"


class VaultServer(Protocol):
    """A running Vault or OpenBao."""

    @property
    def address(self) -> str:
        """`https://127.0.0.1:PORT`."""

    @property
    def ca_file(self) -> Path: ...

    @property
    def version(self) -> str:
        """`2.7.2`."""

    @property
    def pid(self) -> int: ...

    def root_token(self) -> str | None:
        """The first start's root token; None once `forget_root_token` was called."""

    def forget_root_token(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class AppRoleFiles:
    """Files, readable by their owner only, that a role logs in with."""

    role_id_file: Path
    secret_id_file: Path


@dataclass(frozen=True, slots=True)
class RoleFiles:
    service: AppRoleFiles
    officer: AppRoleFiles
    auditor: AppRoleFiles


def set_up(vault: VaultServer, folder: Path) -> RoleFiles:
    """Make the roles and write their credentials to `folder`; then revoke the root token.

    Does nothing on a server that was set up before: no root token is left to do it with.
    """
    token = vault.root_token()
    if token is not None:
        client = hvac.Client(url=vault.address, token=token, verify=str(vault.ca_file))
        _enable(client)
        for role in ROLES:
            _make_role(client, role, _files(folder, role))
        client.auth.token.revoke_self()
        vault.forget_root_token()
    return RoleFiles(*(_files(folder, role) for role in ROLES))


def policies_folder() -> Path:
    """The shipped policies: in a checkout under deploy/, in a wheel beside this file."""
    packaged = Path(__file__).with_name("vault_policies")
    return packaged if packaged.exists() else Path(__file__).parents[2] / "deploy/vault/policies"


def _enable(client: Any) -> None:
    if "transit/" not in client.sys.list_mounted_secrets_engines()["data"]:
        client.sys.enable_secrets_engine("transit")
    # Signs checkpoints of the audit log. Making a key that is there already changes nothing.
    client.secrets.transit.create_key(CHECKPOINT_KEY, key_type="ed25519")
    if f"{KV_MOUNT}/" not in client.sys.list_mounted_secrets_engines()["data"]:
        client.sys.enable_secrets_engine("kv", path=KV_MOUNT, options={"version": "2"})
        _configure_kv(client)
    if "approle/" not in client.sys.list_auth_methods()["data"]:
        client.sys.enable_auth_method("approle")


def _configure_kv(client: Any) -> None:
    """Writes need the version that they follow. A new engine takes a moment to be ready."""
    end = time.monotonic() + _KV_READY_S
    while True:
        try:
            client.secrets.kv.v2.configure(max_versions=0, cas_required=True, mount_point=KV_MOUNT)
        except hvac.exceptions.VaultError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def _make_role(client: Any, role: str, files: AppRoleFiles) -> None:
    name = f"modelkms-{role}"
    client.sys.create_or_update_policy(name, policy=(policies_folder() / f"{role}.hcl").read_text())
    client.auth.approle.create_or_update_approle(
        name,
        token_policies=[name],
        token_no_default_policy=True,
        token_ttl=_LOGIN_TTL,
        token_max_ttl=_LOGIN_MAX_TTL,
    )
    role_id = client.auth.approle.read_role_id(name)["data"]["role_id"]
    secret_id = client.auth.approle.generate_secret_id(name)["data"]["secret_id"]
    write_private(files.role_id_file, role_id)
    write_private(files.secret_id_file, secret_id)


def _files(folder: Path, role: str) -> AppRoleFiles:
    return AppRoleFiles(folder / f"{role}-role-id", folder / f"{role}-secret-id")
