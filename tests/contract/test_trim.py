"""Trimming on real servers: the policy for the occasion, and the officer who has it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvac.exceptions
import pytest
from modelkms.errors import MasterKeyMisconfigured, SecondOfficerRequired
from modelkms.officer import Officer
from modelkms.officer_vault import VaultDenied, VaultRequestRefused
from modelkms.profile import Profile, VaultProfile
from modelkms.retirement import trim_master_key
from modelkms.types import TrimInfo

from kms_service.development.vault_setup import policies_folder
from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

CONTEXT = base64.b64encode(b"context").decode()


@pytest.fixture(params=["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)])
def vault(request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig]) -> VaultRig:
    return vault_of(request.param)


@pytest.fixture
def project(vault: VaultRig, request: pytest.FixtureRequest) -> str:
    """Its master key is at version 3, and 1 and 2 are retired."""
    project = f"t{abs(hash(request.node.nodeid)) % 10**9}"
    name = vault.make_key(f"modelkms-{project}")
    for _ in range(2):
        vault.root.secrets.transit.rotate_key(name)
    vault.root.secrets.transit.update_key_configuration(name, min_decryption_version=3)
    return project


def token_for(vault: VaultRig, project: str) -> str:
    """Of an officer who was given the policy for this project."""
    text = (policies_folder() / "trim.hcl").read_text()
    assert "modelkms-PROJECT" in text
    policy = f"modelkms-trim-{project}"
    vault.root.sys.create_or_update_policy(policy, policy=text.replace("PROJECT", project))
    made = vault.root.auth.token.create(policies=["modelkms-officer", policy], ttl="5m")
    return str(made["auth"]["client_token"])


def profile_of(vault: VaultRig, folder: Path, token: str, **changed: Any) -> VaultProfile:
    file = folder / "token"
    file.write_text(token)
    file.chmod(0o600)
    fields = {
        "address": vault.server.address,
        "ca_file": vault.server.ca_file,
        "token_file": file,
        **changed,
    }
    return VaultProfile.model_validate(fields)


def state(vault: VaultRig, project: str) -> dict[str, Any]:
    found: dict[str, Any] = vault.root.secrets.transit.read_key(f"modelkms-{project}")["data"]
    return found


@dataclass
class Service:
    """The service, as far as the second officer's half wants it."""

    profile: Profile
    vault_key: str
    refuse: Exception | None = None
    confirmed: list[int] = field(default_factory=list)

    def confirm_trim(self, oldest: int, project: str) -> TrimInfo:
        if self.refuse is not None:
            raise self.refuse
        self.confirmed.append(oldest)
        name = f"projects/{project}/masterKey"
        return TrimInfo(name, self.vault_key, oldest, "spiffe://x/a", "spiffe://x/b", None, None)


def service(vault_profile: VaultProfile, vault_key: str, **fields: Any) -> Any:
    profile = Profile.model_construct(vault=vault_profile)
    return Service(profile, vault_key, **fields)


def test_the_second_officer_trims(vault: VaultRig, project: str, tmp_path: Path) -> None:
    root = vault.root.secrets.transit
    key = f"modelkms-{project}"
    wrapped = root.encrypt_data(key, plaintext="aGk=", context=CONTEXT)["data"]["ciphertext"]
    client = service(profile_of(vault, tmp_path, token_for(vault, project)), key)
    for _ in range(2):  # once more is nothing more
        assert trim_master_key(client, project, 3).oldest_version == 3
    found = state(vault, project)
    assert (found["min_available_version"], found["min_encryption_version"]) == (3, 3)
    assert list(found["keys"]) == ["3"]
    assert root.decrypt_data(key, wrapped, context=CONTEXT)["data"]["plaintext"] == "aGk="
    # There is no way back: not for the officer, nor for who may do anything.
    with closing(Officer(client.profile.vault)) as officer, pytest.raises(VaultRequestRefused):
        officer.set_oldest_version(project, 2)
    with pytest.raises(hvac.exceptions.InvalidRequest):
        root.update_key_configuration(key, min_decryption_version=1)


def test_vault_keeps_what_it_still_decrypts_under(
    vault: VaultRig, project: str, tmp_path: Path
) -> None:
    vault.root.secrets.transit.update_key_configuration(
        f"modelkms-{project}", min_decryption_version=2
    )
    with (
        closing(Officer(profile_of(vault, tmp_path, token_for(vault, project)))) as officer,
        pytest.raises(VaultRequestRefused),
    ):
        officer.trim_master_key(project, 3)
    assert len(state(vault, project)["keys"]) >= 2


def test_nothing_is_trimmed_past_the_service(vault: VaultRig, project: str, tmp_path: Path) -> None:
    mine = profile_of(vault, tmp_path, token_for(vault, project))
    refusing = service(mine, f"modelkms-{project}", refuse=SecondOfficerRequired("no"))
    with pytest.raises(SecondOfficerRequired):
        trim_master_key(refusing, project, 3)
    other = service(mine, "modelkms-another")
    with pytest.raises(MasterKeyMisconfigured, match="modelkms-another"):
        trim_master_key(other, project, 3)
    assert state(vault, project)["min_available_version"] == 0


def test_an_officer_without_the_policy_for_it_trims_nothing(
    vault: VaultRig, project: str, tmp_path: Path
) -> None:
    role = vault.roles.officer
    ordinary = profile_of(
        vault,
        tmp_path,
        "",
        token_file=None,
        role_id_file=role.role_id_file,
        secret_id_file=role.secret_id_file,
    )
    client = service(ordinary, f"modelkms-{project}")
    with pytest.raises(VaultDenied):
        trim_master_key(client, project, 3)
    assert state(vault, project)["min_available_version"] == 0


def test_the_policy_is_for_one_project_and_for_trimming_alone(
    vault: VaultRig, project: str
) -> None:
    other = vault.make_key(f"modelkms-{project}-other")
    vault.root.secrets.transit.rotate_key(other)
    config = {"min_decryption_version": 2, "min_encryption_version": 2}
    vault.root.write_data(f"transit/keys/{other}/config", data=config)
    officer = hvac.Client(
        url=vault.server.address, token=token_for(vault, project), verify=str(vault.server.ca_file)
    )
    key = f"modelkms-{project}"
    body = {"min_available_version": 2}
    for path, data in (
        (f"transit/keys/{other}/trim", body),
        (f"transit/keys/{key}/trim", {**body, "force": True}),
        (f"transit/keys/{key}/config", {"deletion_allowed": True}),
        (f"transit/decrypt/{key}", {"context": CONTEXT, "ciphertext": "vault:v1:aGk="}),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            officer.write_data(path, data=data)
    with pytest.raises(hvac.exceptions.Forbidden):
        officer.delete(f"transit/keys/{key}")
    with pytest.raises(hvac.exceptions.Forbidden):
        officer.read(f"transit/backup/{key}")
