"""Real Vaults for tests: one of each kind a worker, set up with the shipped policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac

from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_session import VaultSession, VaultSettings
from kms_service.development.openbao import OpenBao
from kms_service.development.vault_setup import AppRoleFiles, RoleFiles, VaultServer, set_up
from tests.support.hashicorp_vault import HashicorpVault
from tests.support.planted_secrets import CREDENTIAL, plant

START: dict[str, Callable[[Path], VaultServer]] = {
    "openbao": OpenBao.start,
    "hashicorp": HashicorpVault.start,
}


@dataclass(frozen=True, slots=True)
class VaultRig:
    """A running server, its roles' credentials, and a root token that only tests have."""

    server: VaultServer
    roles: RoleFiles
    root: Any
    """hvac client with the root token (made for the tests; set-up revoked the first one)."""

    def login(self, role: AppRoleFiles) -> Any:
        """An hvac client logged in by AppRole."""
        client = hvac.Client(url=self.server.address, verify=str(self.server.ca_file))
        client.auth.approle.login(role.role_id_file.read_text(), role.secret_id_file.read_text())
        return client

    def settings(self, *, address: str | None = None, timeout_s: float = 2.0) -> VaultSettings:
        """The service's login at this server, or at a proxy before it."""
        return VaultSettings(
            address=address or self.server.address,
            ca_file=self.server.ca_file,
            namespace=None,
            approle_mount="approle",
            role_id_file=self.roles.service.role_id_file,
            secret_id_file=self.roles.service.secret_id_file,
            token_file=None,
            request_timeout_s=timeout_s,
            connections=8,
        )

    @contextmanager
    def master_keys(self, **settings: Any) -> Iterator[VaultMasterKeys]:
        """The adapter under the service's role."""
        adapter = VaultMasterKeys(VaultSession(self.settings(**settings)), "transit")
        try:
            yield adapter
        finally:
            adapter.close()

    def make_key(self, name: str, **options: Any) -> str:
        """A transit key as the officer makes it."""
        wanted = {"derived": True, "exportable": False, **options}
        self.root.secrets.transit.create_key(name, key_type="aes256-gcm96", **wanted)
        return name


@contextmanager
def running(kind: str, folder: Path) -> Iterator[VaultRig]:
    """Start a server of the kind `openbao` or `hashicorp` in `folder`."""
    server = START[kind](folder / "server")
    try:
        first = hvac.Client(
            url=server.address, token=server.root_token(), verify=str(server.ca_file)
        )
        # An orphan, so that it outlives the revocation of the first root token.
        token = first.auth.token.create_orphan(policies=["root"])["auth"]["client_token"]
        plant(CREDENTIAL, token)
        roles = set_up(server, folder / "roles")
        root = hvac.Client(url=server.address, token=token, verify=str(server.ca_file))
        yield VaultRig(server, roles, root)
    finally:
        server.stop()
